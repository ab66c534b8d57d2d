"""How full an ext4 file system is, read from its superblock: what df would say inside the guest."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from bench.errors import ImageError

_SUPERBLOCK: Final = 1024
_MAGIC: Final = 0xEF53
_INCOMPAT_64BIT: Final = 0x80


def used_bytes(disk: Path, offset_bytes: int = 0) -> int | None:
    """Return the bytes in use of the file system at ``offset_bytes`` of ``disk``, without its own tables and journal.

    That is f_blocks - f_bfree of statfs(2), as the kernel computes it (fs/ext4/super.c, ext4_statfs). ``None`` if
    whoever made it did not write down how much the tables take (mke2fs does, s_overhead_clusters).

    Raises:
        ImageError: there is no such file system.
    """
    with disk.open("rb") as file:
        file.seek(offset_bytes + _SUPERBLOCK)
        block = file.read(1024)
    if len(block) < 1024 or struct.unpack_from("<H", block, 0x38)[0] != _MAGIC:
        raise ImageError(f"{disk} has no ext4 file system at {offset_bytes}", hint="delete it, and it is made again")
    wide = struct.unpack_from("<I", block, 0x60)[0] & _INCOMPAT_64BIT

    def number(low: int, high: int) -> int:
        value: int = struct.unpack_from("<I", block, low)[0]
        return value | struct.unpack_from("<I", block, high)[0] << 32 if wide else value

    overhead: int = struct.unpack_from("<I", block, 0x248)[0]
    if not overhead:
        return None
    blocks, free = number(0x04, 0x150), number(0x0C, 0x158)
    block_bytes: int = 1024 << struct.unpack_from("<I", block, 0x18)[0]
    return (blocks - free - overhead) * block_bytes
