"""ADD of a local archive: what it is, and writing its entries into an image's tree."""

from __future__ import annotations

import bz2
import itertools
import lzma
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from bench.errors import ImageError
from bench.units import GIB
from runtimes.build.placing import Looks, Placer
from runtimes.oci.compression import decompress
from runtimes.oci.fields import BLOCK_BYTES
from runtimes.oci.names import MAX_DEPTH
from runtimes.oci.stream import LayerStream
from runtimes.oci.tar import Entry, entries

BUDGET_BYTES: Final = 64 * GIB
CHUNK_BYTES: Final = 1024**2
_XZ_MEMORY_BYTES: Final = GIB
_MAGICS: Final = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MAGIC_BYTES: Final = 6
_KINDS: Final = {
    "file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "character": stat.S_IFCHR,
    "block": stat.S_IFBLK, "fifo": stat.S_IFIFO,
}  # fmt: skip
_REFUSED: Final = "unpack it yourself and COPY what is needed"


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def opened(chunks: Iterable[bytes]) -> Iterator[bytes] | None:
    """Return the tar inside of ``chunks``, decompressed, if it is one at all.

    Raises:
        ImageError: it is compressed and damaged.
    """
    plain = _decompressed(chunks)
    head = b""
    for chunk in plain:
        head += chunk
        if len(head) >= BLOCK_BYTES:
            break
    return itertools.chain([head], plain) if _is_tar(head[:BLOCK_BYTES]) else None


def extract(tar: Iterable[bytes], placer: Placer, target: str, name: str) -> None:
    """Write the entries of ``tar`` below ``target``; ``name`` is the archive's, for messages.

    Raises:
        ImageError: it is damaged, leads outside, or unpacks to more than 64 GiB.
    """
    stream = LayerStream(tar, BUDGET_BYTES)
    directories: list[tuple[str, int]] = []
    try:
        for entry in entries(stream):
            path = posixpath.join(target, _inside(entry.path))
            _place(entry, path, stream, placer, target)
            if entry.kind == "directory":
                directories.append((path, entry.mtime_ns))
    except ImageError as error:
        raise ImageError(f"the archive {name}: {error.message}", hint=error.hint) from error
    for path, mtime_ns in reversed(directories):
        placer.settle(path, mtime_ns)


def _place(entry: Entry, path: str, stream: LayerStream, placer: Placer, target: str) -> None:
    if entry.kind == "hardlink":
        placer.hard_link(path, posixpath.join(target, _inside(entry.link)))
        return
    looks = Looks(_KINDS[entry.kind] | entry.mode, (entry.uid, entry.gid), entry.mtime_ns, _kept(entry))
    if entry.kind == "file":
        placer.file(path, looks, _content(entry, stream))
    elif entry.kind == "directory":
        placer.directory(path, looks, keep=path == target)
    elif entry.kind == "symlink":
        placer.symlink(path, entry.link, looks)
    else:
        placer.node(path, looks, entry.device)


def _content(entry: Entry, stream: LayerStream) -> Iterator[memoryview | int]:
    """The bytes of a file, and the lengths of its holes."""
    if entry.sparse is None:
        yield from stream.pieces(entry.size)
        return
    at = 0
    for offset, length in entry.sparse.extents:
        yield offset - at
        yield from stream.pieces(length)
        at = offset + length
    yield entry.sparse.size - at


def _kept(entry: Entry) -> dict[str, bytes]:
    wanted = ("security.capability", "user.")
    return {name: value for name, value in entry.xattrs.items() if name.startswith(wanted)}


def _inside(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ImageError(f"an entry {path[:200]!r} leads outside", hint=_REFUSED)
    if len(parts) > MAX_DEPTH:
        raise ImageError(f"it nests directories deeper than {MAX_DEPTH}", hint=_REFUSED)
    return "/".join(parts)


def _decompressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    iterator = iter(chunks)
    head = next(iterator, b"")
    whole = itertools.chain([head], iterator)
    kind = next((kind for magic, kind in _MAGICS.items() if head[:_MAGIC_BYTES].startswith(magic)), "none")
    if kind == "bzip2":
        return _through(whole, bz2.BZ2Decompressor)
    if kind == "xz":
        return _through(whole, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES))
    return decompress(whole, kind)


def _through(chunks: Iterable[bytes], make: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """One or more streams, in pieces of at most 1 MiB."""
    decompressor = make()
    for chunk in chunks:
        data = chunk
        while data or not decompressor.needs_input:
            if decompressor.eof:
                data, decompressor = decompressor.unused_data + data, make()
                if not data:
                    break
            try:
                piece = decompressor.decompress(data, CHUNK_BYTES)
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise ImageError(f"the archive is damaged: {error}", hint="make or fetch it again") from error
            data = b""
            if piece:
                yield piece
    if not decompressor.eof:
        raise ImageError("the archive ends too early", hint="make or fetch it again")


def _is_tar(block: bytes) -> bool:
    """Whether the first header's checksum is right, which says more than its magic does."""
    if len(block) < BLOCK_BYTES or not block[148:156].strip(b" \0").isdigit() or not any(block):
        return False
    blanked = block[:148] + b" " * 8 + block[156:]
    text = block[148:156].split(b"\0")[0].strip()
    return not text.strip(b"01234567") and bool(text) and int(text, 8) == sum(blanked)
