"""Sets the times in an ext4 file system that no program can set on the files it is made of.

mke2fs -d copies when a file was last read and when its inode last changed. Both are of the moment at which the tree
was put together, and the only bytes in which two disks of the same packages differ.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.errors import HostError, ImageError

_SUPERBLOCK: Final = 1024
_FREE_INODES: Final = 0x10
_FIRST_INODE: Final = 11
"""Those before it are the file system's own."""


def settle_times(path: Path, offset_bytes: int, seconds: int, environment: Mapping[str, str]) -> None:
    """Set access and change time of all files in the fresh ext4 at ``offset_bytes`` of ``path`` to ``seconds``.

    mke2fs gives out inodes one after the other, so those in use are the first. ``environment`` is what mke2fs got, so
    that the file system's own time is not that of this change.

    Raises:
        HostError: debugfs is not installed.
        ImageError: it fails.
    """
    with path.open("rb") as disk:
        disk.seek(offset_bytes + _SUPERBLOCK)
        superblock = disk.read(1024)
    (count,), (free,) = (struct.unpack_from("<I", superblock, place) for place in (0, _FREE_INODES))
    fields = [(inode, name) for inode in range(_FIRST_INODE, count - free + 1) for name in ("atime", "ctime")]
    requests = "".join(f"set_inode_field <{inode}> {name} @{seconds}\n" for inode, name in fields)
    command = ["debugfs", "-w", "-f", "-", f"{path}?offset={offset_bytes}"]
    try:
        ended = subprocess.run(
            command, env={**os.environ, **environment}, input=requests, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise HostError("the program debugfs is not installed", hint="apt-get install e2fsprogs") from error
    if ended.returncode != 0:
        raise ImageError(f"debugfs cannot set times in {path}: {ended.stderr.strip()}", hint=f"df -h {path.parent}")
