"""Sparse files in tar, in the four ways that GNU tar has written them (its manual, "Storing Sparse Files").

A map says where the stored bytes belong; what it leaves out is holes. Every map is checked: ascending,
nothing twice, nothing beyond the end, and together exactly what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from bench.errors import ImageError
from runtimes.oci.fields import BLOCK_BYTES, damaged, decimal, number
from runtimes.oci.stream import LayerStream

MAX_MAP_BYTES: Final = 1024**2
"""A longer map is refused, as by Go's archive/tar: it would have to be held in memory."""

# The old header (GNU tar's manual, "Basic Tar Format"): four extents, whether more follow, and the file's size.
_OLD_MAP_AT: Final = 386
_OLD_MAP_ENTRIES: Final = 4
_OLD_MORE_AT: Final = 482
_OLD_SIZE: Final = slice(483, 495)
_MORE_ENTRIES: Final = 21
_MORE_MORE_AT: Final = 504


@dataclass(frozen=True)
class Sparse:
    """A file of ``size`` bytes that is holes but for ``extents``: offset and length, in the order stored."""

    size: int
    extents: tuple[tuple[int, int], ...]


def old_map(header: bytes, stream: LayerStream, stored: int) -> Sparse:
    """Read the map of a header of type ``S``, with the blocks that continue it.

    Raises:
        ImageError: it is none, or longer than 1 MiB.
    """
    numbers = list(_old_entries(header, _OLD_MAP_AT, _OLD_MAP_ENTRIES))
    more, blocks = header[_OLD_MORE_AT], 0
    while more:
        blocks += 1
        if blocks * BLOCK_BYTES > MAX_MAP_BYTES:
            raise _too_long()
        block = stream.read(BLOCK_BYTES)
        numbers += _old_entries(block, 0, _MORE_ENTRIES)
        more = block[_MORE_MORE_AT]
    return _checked(number(header[_OLD_SIZE]), numbers, stored)


def pax_map(records: Mapping[str, bytes], stream: LayerStream, stored: int) -> tuple[Sparse, int] | None:
    """Return the map that pax ``records`` speak of, and how many of the ``stored`` bytes it took; None without one.

    Raises:
        ImageError: it is damaged, longer than 1 MiB, or of a version that nobody has defined.
    """
    major, minor = (records.get(f"GNU.sparse.{part}") for part in ("major", "minor"))
    if (major, minor) == (b"1", b"0"):
        numbers, taken = _map_in_content(stream, stored)
        return _checked(_size(records), numbers, stored - taken), taken
    if (major, minor) not in ((None, None), (b"0", b"0"), (b"0", b"1")):
        raise damaged("has a sparse file of an unknown version")
    text = records.get("GNU.sparse.map")
    if text is None:
        if "GNU.sparse.size" in records or "GNU.sparse.realsize" in records:
            raise damaged("has a sparse file without a map")
        return None
    numbers = [decimal(part) for part in text.split(b",")] if text else []
    if 2 * decimal(records.get("GNU.sparse.numblocks", b"%d" % (len(numbers) // 2))) != len(numbers):
        raise damaged("has a sparse file whose map is not as long as it says")
    return _checked(_size(records), numbers, stored), 0


def join_pairs(values: list[tuple[bool, bytes]]) -> bytes:
    """Make of version 0.0's repeated records (whether an offset, and the value) the map that 0.1 has in one.

    Raises:
        ImageError: offsets and lengths do not take turns.
    """
    if any(is_offset != (at % 2 == 0) for at, (is_offset, _) in enumerate(values)):
        raise damaged("has a sparse file whose offsets and lengths do not take turns")
    return b",".join(value for _, value in values)


def _size(records: Mapping[str, bytes]) -> int:
    return decimal(records.get("GNU.sparse.realsize") or records.get("GNU.sparse.size") or b"")


def _old_entries(block: bytes, start: int, count: int) -> Iterator[int]:
    """Offsets and lengths in turn, up to the first entry that is empty."""
    for at in range(start, start + 24 * count, 24):
        if not block[at]:
            return
        yield number(block[at : at + 12])
        yield number(block[at + 12 : at + 24])


def _map_in_content(stream: LayerStream, stored: int) -> tuple[list[int], int]:
    """Version 1.0: the number of extents, then offsets and lengths, a line each, before the stored bytes."""
    text, taken = b"", 0
    wanted = None
    while wanted is None or text.count(b"\n") < wanted:
        if taken + BLOCK_BYTES > min(stored, MAX_MAP_BYTES):
            raise _too_long()
        text += stream.read(BLOCK_BYTES)
        taken += BLOCK_BYTES
        if wanted is None and b"\n" in text:
            wanted = 1 + 2 * decimal(text.partition(b"\n")[0])
            if 2 * wanted > MAX_MAP_BYTES:
                raise _too_long()
    return [decimal(line) for line in text.split(b"\n")[1:wanted]], taken


def _checked(size: int, numbers: list[int], stored: int) -> Sparse:
    if len(numbers) % 2 or size < 0 or min(numbers, default=0) < 0:
        raise damaged("has a sparse file whose map is none")
    extents = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    ends = [offset + length for offset, length in extents]
    if any(end > offset for end, (offset, _) in zip(ends, extents[1:], strict=False)):
        raise damaged("has a sparse file whose map overlaps")
    if ends and ends[-1] > size:
        raise damaged("has a sparse file whose map goes beyond its end")
    if sum(numbers[1::2]) != stored:
        raise damaged("has a sparse file that stores more or less than its map says")
    return Sparse(size, extents)


def _too_long() -> ImageError:
    return damaged("has a sparse file with a map that is too long")
