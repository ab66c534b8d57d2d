"""The bytes of a layer on their way in: decompressed, counted against a budget, hashed.

A layer is hostile until its last byte was seen: nothing here holds more of it than a few chunks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import IO, Final, NoReturn, cast

from isal import isal_zlib

from bench.errors import ImageError
from bench.units import format_bytes

CHUNK_BYTES: Final = 1024**2
_GZIP_MAGIC: Final = b"\x1f\x8b"
_CORRUPT: Final[type[Exception]] = isal_zlib.error  # type: ignore[assignment]  # its stub says an instance
_ZSTD_MAX_WINDOW: Final = 128 * 1024**2
"""What zstd itself allows by default (ZSTD_WINDOWLOG_LIMIT_DEFAULT): memory a frame may make us hold."""


class LayerStream:
    """The uncompressed tar of a layer; reading stops at ``budget_bytes``."""

    def __init__(self, chunks: Iterable[bytes], budget_bytes: int) -> None:
        self._chunks = iter(chunks)
        self._left = budget_bytes
        self._budget = budget_bytes
        self._hash = hashlib.sha256()
        self._current = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Return exactly ``size`` bytes; for headers.

        Raises:
            ImageError: the layer ends before, is corrupt, or the budget is used up.
        """
        if len(self._current) >= size:
            piece, self._current = self._current[:size], self._current[size:]
            return bytes(piece)
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield the next ``size`` bytes as they come. Raises as ``read`` does."""
        self.demand(size)
        while size:
            if not self._current and not self._advance():
                raise ImageError("a layer ends in the middle of an entry", hint=_DAMAGED)
            piece = self._current[:size]
            self._current = self._current[len(piece) :]
            size -= len(piece)
            yield piece

    def demand(self, size: int) -> None:
        """Refuse a claim of ``size`` further bytes at once if the budget cannot hold them."""
        if size > self._left + len(self._current):
            self._exceeded()

    def finish(self) -> str:
        """Read what is left and return the digest of all that was read: the layer's diff_id."""
        while self._advance():
            pass
        return f"sha256:{self._hash.hexdigest()}"

    @property
    def consumed(self) -> int:
        """How many bytes were handed out."""
        return self._budget - self._left - len(self._current)

    def _advance(self) -> bool:
        for chunk in self._chunks:
            if not chunk:
                continue
            if len(chunk) > self._left:
                self._exceeded()
            self._left -= len(chunk)
            self._hash.update(chunk)
            self._current = memoryview(chunk)
            return True
        self._current = memoryview(b"")
        return False

    def _exceeded(self) -> NoReturn:
        raise ImageError(
            f"a layer unpacks to more than the {format_bytes(self._budget)} allowed",
            hint="a decompression bomb, or an image larger than this caller expects",
        )


def decompress(blob: Iterable[bytes], compression: str) -> Iterator[bytes]:
    """Yield what ``blob`` holds, in pieces of at most 1 MiB, so that a bomb cannot fill memory.

    ``compression`` is one of ``descriptor.COMPRESSIONS``' values.

    Raises:
        ImageError: the bytes are not of that compression, are corrupt, or end too early.
    """
    if compression == "gzip":
        return _gunzip(blob)
    if compression == "zstd":
        return _unzstd(blob)
    return iter(blob)


def _gunzip(blob: Iterable[bytes]) -> Iterator[bytes]:
    """RFC 1952: one or more members."""
    inflate = None
    for chunk in blob:
        data = chunk
        while data:
            if inflate is None:
                if not _GZIP_MAGIC.startswith(data[:2]):
                    raise ImageError("a layer said to be gzip is not", hint=_DAMAGED)
                inflate = isal_zlib.decompressobj(wbits=31)
            try:
                yield inflate.decompress(data, CHUNK_BYTES)
            except _CORRUPT as error:
                raise ImageError(f"a gzip layer is corrupt: {error}", hint=_DAMAGED) from error
            data = inflate.unconsumed_tail
            if inflate.eof:
                data, inflate = inflate.unused_data, None
    if inflate is not None:
        yield from _drain(inflate)


def _drain(inflate: isal_zlib.Decompress) -> Iterator[bytes]:
    while not inflate.eof:
        try:
            piece = inflate.decompress(b"", CHUNK_BYTES)
        except _CORRUPT as error:
            raise ImageError(f"a gzip layer is corrupt: {error}", hint=_DAMAGED) from error
        if not piece:
            raise ImageError("a gzip layer ends too early", hint=_DAMAGED)
        yield piece


def _unzstd(blob: Iterable[bytes]) -> Iterator[bytes]:
    """RFC 8878: one or more frames."""
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW).stream_reader(
        cast("IO[bytes]", _Readable(blob)), read_across_frames=True, closefd=False
    )
    try:
        while piece := reader.read(CHUNK_BYTES):
            yield piece
    except zstandard.ZstdError as error:
        raise ImageError(f"a zstd layer is corrupt: {error}", hint=_DAMAGED) from error


class _Readable:
    """Gives an iterable of chunks the ``read`` that zstandard asks for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, size: int) -> bytes:
        data = self._rest or next(self._chunks, b"")
        self._rest = data[size:]
        return data[:size]


_DAMAGED: Final = "the image is damaged or malicious; fetch or build it again"
