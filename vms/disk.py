"""The ext4 disk that an image becomes: made once, then shared read-only by the overlays of all trials."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import HostError, ImageError
from bench.model import WorkloadImage
from bench.units import GIB
from vms.cache import keep, making
from vms.ext4 import used_bytes

ROOM_BYTES: Final = 16 * GIB
"""Sparse room on every disk for what a trial writes; a suite that grants more cannot be started."""

_OPTIONS: Final = (
    "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0",
    # new files are holes, hence zero: neither mke2fs nor the guest's kernel need write empty tables
    "-E", "lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=1,hash_seed={uuid},root_owner=0:0,"
    "offset={offset}",
    "-U", "{uuid}", "-L", "isomark",
)  # fmt: skip
_EPOCH: Final = "1"
"""Not 0, which libext2fs takes for unset."""


@dataclass(frozen=True)
class Disk:
    """A raw disk. ``compressed_bytes`` is its size as a zstd-compressed qcow2."""

    path: Path
    size_bytes: int
    compressed_bytes: int

    @property
    def on_disk_bytes(self) -> int:
        """Blocks that the host's file system has allocated for it (stat(2))."""
        return self.path.stat().st_blocks * 512

    @property
    def used_bytes(self) -> int | None:
        """What of its file system is in use, as the guest will see it; see ``vms.ext4``."""
        return used_bytes(self.path)


def make_disk(image: WorkloadImage, directory: Path) -> Disk:
    """Return the disk of ``image``, made in ``directory`` unless it is there already.

    Raises:
        ImageError: mke2fs cannot make it of the tree.
        HostError: mke2fs or qemu-img is missing, or there is no space.
    """
    path = directory / f"{image.digest.rpartition(':')[2][:24]}-{_recipe()}.raw"
    if not path.exists():
        with making(path) as temporary:
            if temporary is not None:
                _mke2fs(image, temporary)
    size = path.with_suffix(".json")
    keep(directory, size.name, lambda: json.dumps({"compressed_bytes": compressed_bytes(path)}).encode())
    return Disk(path, path.stat().st_size, int(json.loads(size.read_text())["compressed_bytes"]))


def _recipe() -> str:
    """A digest of everything but the image that shapes the disk."""
    return hashlib.sha256(repr((_OPTIONS, _EPOCH, ROOM_BYTES)).encode()).hexdigest()[:8]


def size_for(image: WorkloadImage) -> int:
    """Bytes of a file system that holds ``image`` and leaves a trial its room, in whole GiB."""
    return -(-(image.tree_bytes * 5 // 4 + ROOM_BYTES) // GIB) * GIB


def mke2fs_command(
    image: WorkloadImage, tree: Path, path: Path, size_bytes: int, offset_bytes: int = 0
) -> tuple[list[str], dict[str, str]]:
    """Return the command that writes ``tree`` as ext4 to ``path``, and what its environment must hold.

    The file system is ``size_bytes`` long and starts at ``offset_bytes``. Its identity is that of ``image``.
    """
    identity = str(uuid.uuid5(uuid.NAMESPACE_OID, image.digest))
    options = [option.format(uuid=identity, offset=offset_bytes) for option in _OPTIONS]
    # mke2fs takes the time from E2FSPROGS_FAKE_TIME, since 1.47.1 from SOURCE_DATE_EPOCH too
    fixed = {"E2FSPROGS_FAKE_TIME": _EPOCH, "SOURCE_DATE_EPOCH": _EPOCH}
    return ["mke2fs", *options, "-d", str(tree), str(path), f"{size_bytes >> 10}k"], fixed


def _mke2fs(image: WorkloadImage, path: Path) -> None:
    size = size_for(image)
    with path.open("xb") as file:
        file.truncate(size)
    ended = _run(*mke2fs_command(image, image.tree, path, size))
    if ended.returncode != 0:
        raise ImageError(
            f"mke2fs cannot make a disk of {image.reference}: {ended.stderr.strip()}",
            hint=f"df -h {path.parent} shows whether there is space; script/bootstrap installs e2fsprogs",
        )


def compressed_bytes(disk: Path) -> int:
    """Compress ``disk`` to find out how large that is; the copy is deleted."""
    copy = disk.with_name(f".{disk.stem}.qcow2")
    try:
        # -W: written out of order, which is faster and as large
        command = ["qemu-img", "convert", "-q", "-W", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"]
        ended = _run([*command, str(disk), str(copy)], {})
        if ended.returncode != 0:
            raise HostError(f"qemu-img cannot compress {disk}: {ended.stderr.strip()}", hint=f"df -h {disk.parent}")
        return copy.stat().st_size
    finally:
        copy.unlink(missing_ok=True)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, errors="replace"
        )
    except FileNotFoundError as error:
        raise HostError(f"the program {command[0]} is not installed", hint="script/bootstrap") from error
