"""A small ISO 9660 file system, written directly: some files in one directory, the same bytes for the same files.

Only what Linux needs to mount it and blkid to find its label (ECMA-119): no Rock Ridge, no Joliet. Linux shows the
names in lower case and without their version.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from typing import Final

SECTOR: Final = 2048
_VOLUME: Final = 16
"""The sector of the volume descriptor; those before it are empty."""
_PATHS: Final = (18, 19)
"""The path table with its numbers little-endian, and big-endian."""
_ROOT: Final = 20
_NAME: Final = re.compile(r"[a-z0-9-]{1,28}")
_NO_TIME: Final = b"0" * 16 + b"\0"
_IS_DIRECTORY: Final = 2
_EPOCH: Final = bytes((123, 6, 10, 0, 0, 0, 0))
"""Years since 1900, month, day: 2023-06-10, the time of all images."""


def iso9660(label: str, files: Mapping[str, bytes]) -> bytes:
    """Return a file system called ``label`` that holds ``files``, name -> content.

    Raises:
        ValueError: a label or name it cannot hold, or more names than fit into one sector.
    """
    if len(label) > 32 or not all(_NAME.fullmatch(name) for name in (label, *files)):
        raise ValueError("labels and names are of a-z, 0-9 and -")
    names = sorted(files)
    starts = list(_starts([len(files[name]) for name in names]))
    root = _record(b"\0", _ROOT, SECTOR, _IS_DIRECTORY)
    records = [root, _record(b"\1", _ROOT, SECTOR, _IS_DIRECTORY)]
    records += [
        _record(f"{name.upper()}.;1".encode(), start, len(files[name]), 0)
        for name, start in zip(names, starts, strict=False)
    ]
    directory = b"".join(records)
    if len(directory) > SECTOR:
        raise ValueError("too many files")
    tables = [struct.pack(f"{order}BBIH2s", 1, 0, _ROOT, 1, b"\0\0") for order in "<>"]
    terminator = struct.pack("<B5sB", 255, b"CD001", 1)
    sectors = [_volume(label, starts[-1], root), terminator, *tables, directory, *(files[name] for name in names)]
    return bytes(_VOLUME * SECTOR) + b"".join(_filled(data) for data in sectors)


def _starts(lengths: list[int]) -> Iterator[int]:
    """The first sector of each file, and the first after them all."""
    position = _ROOT + 1
    for length in lengths:
        yield position
        position += -(-length // SECTOR)
    yield position


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR)


def _both(number: int, size: str = "I") -> bytes:
    """A number in both byte orders, as most are."""
    return struct.pack(f"<{size}", number) + struct.pack(f">{size}", number)


def _record(name: bytes, sector: int, length: int, flags: int) -> bytes:
    """A directory's entry (9.1)."""
    padding = bytes(1 - len(name) % 2)
    head = _both(sector) + _both(length) + _EPOCH + struct.pack("BBB", flags, 0, 0) + _both(1, "H")
    body = b"\0" + head + struct.pack("B", len(name)) + name + padding
    return struct.pack("B", len(body) + 1) + body


def _volume(label: str, sectors: int, root: bytes) -> bytes:
    """The primary volume descriptor (8.4)."""
    return b"".join((
        struct.pack("<B5sBx32s32s8x", 1, b"CD001", 1, b" " * 32, label.encode().ljust(32)),
        _both(sectors) + bytes(32) + _both(1, "H") + _both(1, "H") + _both(SECTOR, "H") + _both(10),
        struct.pack("<II", _PATHS[0], 0) + struct.pack(">II", _PATHS[1], 0),
        root,
        b" " * (128 * 4 + 37 * 3),
        _NO_TIME * 4,
        b"\1\0",
    ))  # fmt: skip
