"""Undoing what a layer is compressed with, in bounded pieces: a bomb fills neither memory nor time."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import IO, Final, cast

from isal import isal_zlib

from bench.errors import ImageError
from runtimes.oci.names import DAMAGED

CHUNK_BYTES: Final = 1024**2
_SMALLEST_BYTES: Final = 256 * 1024
_SLICE_BYTES: Final = 128 * 1024
_MAX_EMPTY_MEMBERS: Final = 1000
_GZIP_MAGIC: Final = b"\x1f\x8b"
_CORRUPT: Final[type[Exception]] = isal_zlib.error  # type: ignore[assignment]  # its stub says an instance
_ZSTD_MAX_WINDOW: Final = 128 * 1024**2
"""What zstd itself allows by default (ZSTD_WINDOWLOG_LIMIT_DEFAULT): memory a frame may make us hold."""


def decompress(blob: Iterable[bytes], compression: str) -> Generator[bytes, None, None]:
    """Yield what ``blob`` holds, in pieces of little more than 1 MiB, so that a bomb cannot fill memory.

    ``compression`` is one of ``descriptor.COMPRESSIONS``' values. That zstd ends too early shows only in its digest.

    Raises:
        ImageError: the bytes are not of that compression, are corrupt, or end too early.
    """
    if compression == "gzip":
        return _joined(_gunzip(blob))
    if compression == "zstd":
        return _joined(_unzstd(blob))
    return _joined(blob)


def _joined(pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    """Make larger pieces of small ones: each costs a change of threads, and a gzip member may hold a byte."""
    small: list[bytes] = []
    held = 0
    for piece in pieces:
        small.append(piece)
        held += len(piece)
        if held >= _SMALLEST_BYTES:
            yield b"".join(small) if len(small) > 1 else piece
            small, held = [], 0
    yield b"".join(small)


def _gunzip(blob: Iterable[bytes]) -> Generator[bytes, None, None]:
    """RFC 1952: one or more members, and the NUL bytes behind them that some writers pad with."""
    inflate, members, empty = None, 0, 0
    for slice_ in _slices(blob):
        data: bytes | memoryview = slice_
        while data:
            if inflate is None:
                if members and _is_padding(data):
                    break
                inflate, members, empty = _begin_member(data, empty), members + 1, empty + 1
            if piece := _inflate(inflate, data):
                yield piece
                empty = 0
            data = inflate.unconsumed_tail
            if inflate.eof:
                data, inflate = inflate.unused_data, None
    if not members:
        raise ImageError("a gzip layer is empty", hint=DAMAGED)
    if inflate is not None:
        yield from _drain(inflate)


def _drain(inflate: isal_zlib.Decompress) -> Iterator[bytes]:
    while not inflate.eof:
        if not (piece := _inflate(inflate, b"")):
            raise ImageError("a gzip layer ends too early", hint=DAMAGED)
        yield piece


def _slices(blob: Iterable[bytes]) -> Iterator[memoryview]:
    """Cut chunks: at each member's end what is left of one is copied."""
    for chunk in blob:
        view = memoryview(chunk)
        for at in range(0, len(view), _SLICE_BYTES):
            yield view[at : at + _SLICE_BYTES]


def _is_padding(data: bytes | memoryview) -> bool:
    return data[0] == 0 and not bytes(data).strip(b"\0")


def _begin_member(data: bytes | memoryview, empty: int) -> isal_zlib.Decompress:
    if empty > _MAX_EMPTY_MEMBERS:
        raise ImageError("a gzip layer holds nothing, many times over", hint=DAMAGED)
    if not _GZIP_MAGIC.startswith(data[:2]):
        raise ImageError("a layer said to be gzip is not, or has rubbish behind it", hint=DAMAGED)
    return isal_zlib.decompressobj(wbits=31)


def _inflate(inflate: isal_zlib.Decompress, data: bytes | memoryview) -> bytes:
    try:
        return inflate.decompress(data, CHUNK_BYTES)
    except _CORRUPT as error:
        raise ImageError(f"a gzip layer is corrupt: {error}", hint=DAMAGED) from error


def _unzstd(blob: Iterable[bytes]) -> Generator[bytes, None, None]:
    """RFC 8878: one or more frames."""
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW).stream_reader(
        cast("IO[bytes]", _Readable(blob)), read_across_frames=True, closefd=False
    )
    try:
        while piece := reader.read(CHUNK_BYTES):
            yield piece
    except zstandard.ZstdError as error:
        raise ImageError(f"a zstd layer is corrupt: {error}", hint=DAMAGED) from error


class _Readable:
    """Gives an iterable of chunks the ``read`` that zstandard asks for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, size: int) -> bytes:
        data = self._rest or next(self._chunks, b"")
        self._rest = data[size:]
        return data[:size]
