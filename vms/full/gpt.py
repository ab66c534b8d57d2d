"""A GUID partition table, written directly: no loop device, no root, the same bytes for the same disk."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SECTOR: Final = 512
BIOS_BOOT: Final = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
EFI_SYSTEM: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_ROOT: Final = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
"""For x86-64 (Discoverable Partitions Specification)."""

_ENTRIES: Final = 128
_ENTRY_BYTES: Final = 128
_TABLE_SECTORS: Final = _ENTRIES * _ENTRY_BYTES // SECTOR


@dataclass(frozen=True)
class Partition:
    """``length_bytes`` from ``offset_bytes``, both in whole sectors."""

    kind: uuid.UUID
    name: str
    offset_bytes: int
    length_bytes: int


def partition_table(disk: uuid.UUID, size_bytes: int, partitions: Sequence[Partition]) -> tuple[bytes, bytes]:
    """Return the first 34 sectors of a disk of ``size_bytes``, and the last 33 (UEFI 2.10, 5.3).

    The first sector's boot code is left empty. ``partitions`` are numbered from 1 in the order given.

    Raises:
        ValueError: a partition lies outside the disk, over the table or over another.
    """
    sectors = size_bytes // SECTOR
    first_usable, last_usable = 2 + _TABLE_SECTORS, sectors - _TABLE_SECTORS - 2
    taken = first_usable
    for partition in sorted(partitions, key=lambda each: each.offset_bytes):
        first, last = _span(partition)
        if first < taken or last > last_usable or last < first:
            raise ValueError(f"partition {partition.name} does not fit")
        taken = last + 1
    entries = b"".join(_entry(disk, partition) for partition in partitions).ljust(_ENTRIES * _ENTRY_BYTES, b"\0")

    def header(own: int, other: int, table: int) -> bytes:
        def packed(checksum: int) -> bytes:
            start = struct.pack("<8s4I4Q", b"EFI PART", 0x10000, 92, checksum, 0, own, other, first_usable, last_usable)
            return start + struct.pack("<16sQIII", disk.bytes_le, table, _ENTRIES, _ENTRY_BYTES, zlib.crc32(entries))

        return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")

    front = _protective_record(sectors) + header(1, sectors - 1, 2) + entries
    return front, entries + header(sectors - 1, 1, sectors - 1 - _TABLE_SECTORS)


def _span(partition: Partition) -> tuple[int, int]:
    first = partition.offset_bytes // SECTOR
    return first, first + partition.length_bytes // SECTOR - 1


def _entry(disk: uuid.UUID, partition: Partition) -> bytes:
    own = uuid.uuid5(disk, partition.name)
    first, last = _span(partition)
    name = partition.name.encode("utf-16-le")
    return struct.pack("<16s16sQQQ72s", partition.kind.bytes_le, own.bytes_le, first, last, 0, name)


def _protective_record(sectors: int) -> bytes:
    """A master boot record whose one partition, of type EE, covers the disk."""
    entry = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"
