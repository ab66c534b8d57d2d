"""Reading tar: POSIX ustar and pax, GNU's long names and sparse files. Every header is checked, none is trusted.

tarfile is not used for reading: it loads a pax header of any claimed size, and guesses where a
header is damaged. Formats: pax in POSIX.1-2017 (pax, "EXTENDED DESCRIPTION"), GNU tar's manual, chapter D.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, Literal

from bench.errors import ImageError
from runtimes.oci.fields import BLOCK_BYTES, damaged, number, padded, text
from runtimes.oci.pax import overrule, records_of
from runtimes.oci.sparse import Sparse, old_map, pax_map
from runtimes.oci.stream import LayerStream

MAX_EXTENSION_BYTES: Final = 1024**2
"""Pax headers and long names of one entry beyond this are refused, as by Go's archive/tar."""
MAX_ID: Final = 2**32 - 2
"""The largest uid and gid; one more means "do not change" to chown(2)."""
MAX_NANOSECONDS: Final = 2**34 * 10**9
"""The last time that ext4 can store."""

MAX_MAJOR: Final = 2**12
MAX_MINOR: Final = 2**20
"""What Linux's device numbers stay below (linux/kdev_t.h)."""

Kind = Literal["file", "directory", "symlink", "hardlink", "character", "block", "fifo"]

_KINDS: Final[dict[bytes, Kind]] = {
    b"0": "file", b"\0": "file", b"7": "file", b"S": "file",
    b"1": "hardlink", b"2": "symlink", b"3": "character", b"4": "block", b"5": "directory", b"6": "fifo",
}  # fmt: skip
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK, _OLD_SPARSE = b"x", b"g", b"L", b"K", b"S"
_EXTENSIONS: Final = (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK)
_ZEROS: Final = bytes(BLOCK_BYTES)
_HEADER: Final = Struct("100s8s8s8s12s12s8sc100s6s66x8s8s155s12s")
"""Name, mode, uid, gid, size, mtime, checksum, type, link, magic, device numbers, prefix, and star's mark."""
_CHECKSUM: Final = slice(148, 156)
_BLANK_SUM: Final = 8 * ord(" ")


@dataclass(slots=True)
class Entry:
    """One entry of a layer, as its headers claim. ``path`` and ``link`` may hold anything but NUL.

    ``size`` bytes of it follow in the tar; where they belong in a file with holes, ``sparse`` says.
    """

    path: str
    kind: Kind
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    sparse: Sparse | None = None


def entries(stream: LayerStream) -> Iterator[Entry]:
    """Yield the entries of a tar; read ``entry.size`` bytes of ``stream`` between them, or none.

    Raises:
        ImageError: the tar is damaged, or of a kind that layers do not use.
    """
    while (entry := _next(stream)) is not None:
        stream.demand(padded(entry.size))
        end = stream.consumed + padded(entry.size)
        yield entry
        stream.skip(end - stream.consumed)


def _next(stream: LayerStream) -> Entry | None:
    records: dict[str, bytes] = {}
    extended = 0
    while True:
        block = stream.read(BLOCK_BYTES) if not stream.at_end() else None
        if block is None or block == _ZEROS:
            if extended:
                raise damaged("ends after an extended header")
            _check_end(stream, block)
            return None
        flag = block[156:157]
        if flag not in _EXTENSIONS:
            return _entry(block, records, stream)
        content = _extension(block, stream, MAX_EXTENSION_BYTES - extended)
        if flag == _PAX_GLOBAL:
            records_of(content)  # Docker and containerd pass over it, and a layer must mean the same to all
            continue
        extended += BLOCK_BYTES + len(content)
        if flag == _PAX:
            records.update(records_of(content))
        else:
            records["path" if flag == _LONG_NAME else "linkpath"] = content.partition(b"\0")[0]


def _check_end(stream: LayerStream, block: bytes | None) -> None:
    """Two blocks of zeros end a tar, or its last byte; other readers go on after one block."""
    if block is not None and not stream.at_end() and stream.read(BLOCK_BYTES) != _ZEROS:
        raise damaged("goes on after its end")


def _extension(block: bytes, stream: LayerStream, most: int) -> bytes:
    _verify_checksum(block)
    size = _size(block[124:136])
    if size > most:
        raise damaged(f"has extended headers of {size} bytes")
    return stream.read(padded(size))[:size]


def _entry(block: bytes, records: dict[str, bytes], stream: LayerStream) -> Entry:
    entry = _header(block)
    if records:
        overrule(entry, records)
    if block[156] == 0 and entry.path.endswith("/"):  # how tar wrote directories before POSIX
        entry.kind = "directory"
    if block[156:157] == _OLD_SPARSE:
        entry.sparse = old_map(block, stream, entry.size)
    elif records and entry.kind == "file" and (found := pax_map(records, stream, entry.size)):
        entry.sparse = found[0]
        entry.size -= found[1]
    if entry.sparse is not None:
        stream.charge(entry.sparse.size - entry.size)
    _check(entry)
    return entry


def _header(block: bytes) -> Entry:
    (name, mode, uid, gid, size, mtime, _, flag, link, magic, major, minor, prefix, mark) = _HEADER.unpack(block)
    _verify_checksum(block)
    kind = _KINDS.get(flag)
    if kind is None:
        raise ImageError(
            f"a layer holds a tar entry of type {flag!r}, which is not supported", hint="build the image without it"
        )
    path = text(name)
    if prefix[0] and magic == b"ustar\0":
        if mark.endswith(b"tar\0"):  # star(1) has times in its last bytes
            prefix = prefix[:131]
        path = f"{text(prefix)}/{path}"
    entry = Entry(
        path,
        kind,
        _size(size) if kind == "file" else 0,
        number(mode) & 0o7777,
        number(uid),
        number(gid),
        number(mtime) * 10**9,
        text(link),
    )
    if kind in ("character", "block"):
        entry.device = number(major), number(minor)
    return entry


def _size(raw: bytes) -> int:
    size = number(raw)
    if size < 0:
        raise damaged("has an entry of negative size")
    return size


def _verify_checksum(block: bytes) -> None:
    claimed = number(block[_CHECKSUM])
    total = sum(block) - sum(block[_CHECKSUM]) + _BLANK_SUM
    if claimed != total:
        blanked = block[:148] + block[156:]
        if claimed != total - 256 * sum(byte > 127 for byte in blanked):  # some old tars added signed bytes
            raise damaged("has a header with a wrong checksum")


def _check(entry: Entry) -> None:
    if not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
        raise damaged(f"has an entry owned by {entry.uid}:{entry.gid}")
    if abs(entry.mtime_ns) > MAX_NANOSECONDS:
        raise damaged("has an entry from an impossible time")
    major, minor = entry.device
    if not (0 <= major < MAX_MAJOR and 0 <= minor < MAX_MINOR):
        raise damaged(f"has the impossible device {major}:{minor}")
