"""The bytes of a layer on their way in: decompressed, counted against a budget, hashed.

A layer is hostile until its last byte was seen: nothing here holds more of it than a few chunks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import NoReturn

from bench.errors import ImageError
from bench.units import format_bytes
from runtimes.oci.ahead import ahead
from runtimes.oci.compression import decompress
from runtimes.oci.names import DAMAGED

__all__ = ["LayerStream", "decompress", "open_layer"]


class LayerStream:
    """The uncompressed tar of a layer; reading stops at ``budget_bytes``."""

    def __init__(
        self, chunks: Iterable[bytes], budget_bytes: int, *, algorithm: str = "sha256", threaded: bool = False
    ) -> None:
        """Read ``chunks``; with ``threaded`` a thread does so and hashes them, until ``close``."""
        self._hash = hashlib.new(algorithm)
        self._algorithm = algorithm
        hashed = self._hashing(chunks)
        self._chunks = ahead(hashed) if threaded else hashed
        self._left = budget_bytes
        self._budget = budget_bytes
        self._chunk = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return exactly ``size`` bytes; for headers.

        Raises:
            ImageError: the layer ends before, is corrupt, or the budget is used up.
        """
        end = self._at + size
        if end <= len(self._chunk):
            data = self._chunk[self._at : end]
            self._at = end
            return data
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield the next ``size`` bytes as they come. Raises as ``read`` does."""
        self.demand(size)
        while size:
            if self.at_end():
                raise ImageError("a layer ends in the middle of an entry", hint=DAMAGED)
            piece = memoryview(self._chunk)[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes. Raises as ``read`` does."""
        if self._at + size <= len(self._chunk):
            self._at += size
        else:
            for _ in self.pieces(size):
                pass

    def at_end(self) -> bool:
        """Whether nothing is left to read. Raises as ``read`` does."""
        return self._at >= len(self._chunk) and not self._advance()

    def demand(self, size: int) -> None:
        """Refuse a claim of ``size`` further bytes at once if the budget cannot hold them."""
        if size > self._left + len(self._chunk) - self._at:
            self._exceeded()

    def charge(self, size: int) -> None:
        """Count ``size`` bytes that the layer unpacks to without holding them: the holes of a sparse file."""
        if size > self._left:
            self._exceeded()
        self._left -= size

    def finish(self) -> str:
        """Read what is left and return the digest of all that was read: the layer's diff_id."""
        while self._advance():
            pass
        return f"{self._algorithm}:{self._hash.hexdigest()}"

    def close(self) -> None:
        """End the threads, if any; what was not read is lost."""
        self._chunks.close()

    @property
    def consumed(self) -> int:
        """How much of the budget was used, without what was read ahead."""
        return self._budget - self._left - (len(self._chunk) - self._at)

    def _hashing(self, chunks: Iterable[bytes]) -> Generator[bytes, None, None]:
        for chunk in chunks:
            self._hash.update(chunk)
            yield chunk

    def _advance(self) -> bool:
        for chunk in self._chunks:
            if not chunk:
                continue
            if len(chunk) > self._left:
                self._exceeded()
            self._left -= len(chunk)
            self._chunk, self._at = chunk, 0
            return True
        self._chunk, self._at = b"", 0
        return False

    def _exceeded(self) -> NoReturn:
        raise ImageError(
            f"a layer unpacks to more than the {format_bytes(self._budget)} allowed",
            hint="a decompression bomb, or an image larger than this caller expects",
        )


@contextmanager
def open_layer(
    blob: Iterable[bytes], compression: str, budget_bytes: int, algorithm: str = "sha256"
) -> Iterator[LayerStream]:
    """Read the layer in ``blob`` with two threads: one decompresses, one hashes; both end with the block."""
    with (
        closing(ahead(decompress(blob, compression))) as chunks,
        closing(LayerStream(chunks, budget_bytes, algorithm=algorithm, threaded=True)) as stream,
    ):
        yield stream
