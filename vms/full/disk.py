"""The disk of a full guest: GRUB for both firmwares, a server made of the workload's image, made once and shared.

    sector 0     boot record with GRUB's first 440 bytes, then the partition table
    1 MiB        GRUB for a BIOS
    2 MiB        EFI system partition: GRUB for UEFI
    18 MiB       the root file system, ext4, to the end

No loop device is needed: every part is written to its place in the file.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.model import WorkloadImage
from bench.units import GIB, MIB
from vms.cache import keep, making
from vms.disk import compressed_bytes, mke2fs_command, size_for
from vms.ext4 import used_bytes
from vms.full.boot_loader import CORE_BYTES, EFI_BYTES, RECIPE, bios_images, grub_config, write_efi_partition
from vms.full.gpt import BIOS_BOOT, EFI_SYSTEM, LINUX_ROOT, SECTOR, Partition, partition_table
from vms.full.inode_times import settle_times
from vms.full.server import EPOCH, server_recipe, write_server
from vms.kernel import GuestKernel

ARGUMENTS: Final = (
    "root=LABEL=isomark",
    "ro",
    "console=tty0",
    "console=ttyS0,115200",
    # the first kernel lines before the console driver is up; `quiet` after it, so that these few are printed
    "earlycon=uart8250,io,0x3f8,115200",
    "quiet",
    # a kernel that finds itself on KVM trusts the timer too; on a busy host an emulated one fails the check, and panics
    "no_timer_check",
    "panic=-1",  # a panic reboots at once, and a reboot ends the domain
    "systemd.show_status=false",  # the console is the payload's
)
"""The kernel's command line, apart from these four last what an installed server has."""

SERVER_BYTES: Final = GIB
"""Room for what a server has beside the image, so that as much is left to a trial as on every other disk."""

_CORE: Final = MIB
_EFI: Final = _CORE + CORE_BYTES
_ROOT: Final = _EFI + EFI_BYTES


@dataclass(frozen=True)
class FullDisk:
    """A raw disk that boots under SeaBIOS and OVMF. ``compressed_bytes`` is its size as zstd-compressed qcow2."""

    path: Path
    size_bytes: int
    compressed_bytes: int
    kernel_version: str

    @property
    def on_disk_bytes(self) -> int:
        """Blocks that the host's file system has allocated for it (stat(2))."""
        return self.path.stat().st_blocks * 512

    @property
    def used_bytes(self) -> int | None:
        """What of its root file system is in use, as the guest will see it; see ``vms.ext4``."""
        return used_bytes(self.path, _ROOT)


def make_full_disk(image: WorkloadImage, kernel: GuestKernel, directory: Path) -> FullDisk:
    """Return the server disk of ``image`` with ``kernel``, made in ``directory`` unless it is there already.

    Making it takes half a minute: packages are fetched and installed. The same packages give the same bytes; which
    versions they have is the Debian archive's say, as it is for images.

    Raises:
        ImageError: the server cannot be made of the image.
        HostError: a program is missing, this is not root, or there is no space.
    """
    path = directory / f"{image.digest.rpartition(':')[2][:24]}-full-{_recipe(image, kernel)}.raw"
    if not path.exists():
        with making(path) as temporary:
            if temporary is not None:
                _make(image, kernel, temporary)
    facts = path.with_suffix(".json")
    keep(directory, facts.name, lambda: json.dumps({"compressed_bytes": compressed_bytes(path)}).encode())
    known = json.loads(facts.read_text())
    return FullDisk(path, path.stat().st_size, int(known["compressed_bytes"]), kernel.version)


def write_frame(path: Path, size_bytes: int, identity: uuid.UUID) -> int:
    """Make the sparse disk ``path`` with all but its root file system; return where that has to start.

    Raises:
        HostError: GRUB, dosfstools or mtools are missing.
        OSError: it exists already, or cannot be written.
    """
    root_bytes = size_bytes - _ROOT - MIB
    front, back = partition_table(identity, size_bytes, [
        Partition(BIOS_BOOT, "bios", _CORE, CORE_BYTES),
        Partition(EFI_SYSTEM, "efi", _EFI, EFI_BYTES),
        Partition(LINUX_ROOT, "root", _ROOT, root_bytes),
    ])  # fmt: skip
    code, core = bios_images(_CORE // SECTOR)
    with path.open("xb") as file:
        file.truncate(size_bytes)
        for position, data in ((0, front), (0, code), (_CORE, core), (size_bytes - len(back), back)):
            file.seek(position)
            file.write(data)
    write_efi_partition(path, _EFI, identity.fields[0])
    return _ROOT


def _make(image: WorkloadImage, kernel: GuestKernel, path: Path) -> None:
    identity = uuid.uuid5(uuid.NAMESPACE_OID, image.digest)
    size = size_for(image) + SERVER_BYTES
    offset = write_frame(path, _ROOT + size + MIB, identity)
    # one at a time, as the directory is locked; a tmpfs covers it, so it stays empty
    work = path.with_name(".server")
    work.mkdir(exist_ok=True)
    try:
        command, environment = mke2fs_command(image, work / "root", path.absolute(), size, offset)
        write_server(image, kernel, work, grub_config(kernel.version, ARGUMENTS), command, environment)
    finally:
        work.rmdir()
    settle_times(path, offset, EPOCH, environment)


def _recipe(image: WorkloadImage, kernel: GuestKernel) -> str:
    """A digest of everything but the image's content that shapes the disk."""
    system = mke2fs_command(image, Path("tree"), Path("disk"), size_for(image) + SERVER_BYTES, _ROOT)
    shape = (server_recipe(), kernel.version, grub_config(kernel.version, ARGUMENTS), RECIPE, system)
    return hashlib.sha256(repr(shape).encode()).hexdigest()[:8]
