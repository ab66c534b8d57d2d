"""GRUB on a disk for both firmwares: in the boot record and a partition for a BIOS, in a FAT partition for UEFI.

What grub-install does, without a device to do it to: grub-mkimage makes the images, and the two fields
that say where they lie are filled in here.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.errors import HostError
from bench.units import MIB
from vms.full.gpt import SECTOR

EFI_BYTES: Final = 16 * MIB
CORE_BYTES: Final = MIB

_LIBRARY: Final = Path("/usr/lib/grub")
_COMMON: Final = ("part_gpt", "ext2", "search_label", "normal", "configfile", "linux", "echo", "serial", "terminal")
_EFI_PATH: Final = "::/EFI/BOOT/BOOTX64.EFI"
"""Where UEFI looks on a disk that it has no boot entry for."""
_FIRST_STEPS: Final = "search.fs_label isomark root\nset prefix=($root)/boot/grub\n"
_FIXED_TIME: Final = {"SOURCE_DATE_EPOCH": "1686355200", "TZ": "UTC"}
"""For the times in the FAT, which mtools would take from the clock."""
RECIPE: Final = (_COMMON, _FIRST_STEPS, EFI_BYTES, CORE_BYTES)
"""What shapes the images, beside GRUB's version."""
_BOOT_CODE_BYTES: Final = 440
_KERNEL_SECTOR: Final = 0x5C
_DRIVE_CHECK: Final = 0x66
_NOPS: Final = b"\x90\x90"
_BLOCKLIST: Final = SECTOR - 12


def bios_images(core_sector: int) -> tuple[bytes, bytes]:
    """Return the boot record's code and the image that it loads from ``core_sector`` of the disk.

    The code fills the record up to its disk signature. Fields as in GRUB's i386/pc/boot.h and setup.c.

    Raises:
        HostError: GRUB for BIOS is not installed, or does not fit.
    """
    code = bytearray(_read(_LIBRARY / "i386-pc/boot.img")[:_BOOT_CODE_BYTES])
    struct.pack_into("<Q", code, _KERNEL_SECTOR, core_sector)
    # as grub-bios-setup does for a hard disk: believe what the BIOS says of the drive
    code[_DRIVE_CHECK : _DRIVE_CHECK + 2] = _NOPS
    core = bytearray(_mkimage("i386-pc", ("biosdisk", *_COMMON)))
    # the first sector of the image loads the others, one after the other
    struct.pack_into("<Q", core, _BLOCKLIST, core_sector + 1)
    if len(core) > CORE_BYTES:
        raise HostError("GRUB's image is too large for its partition")
    return bytes(code), bytes(core)


def write_efi_partition(disk: Path, offset_bytes: int, serial: int) -> None:
    """Make a FAT file system of ``EFI_BYTES`` at ``offset_bytes`` of ``disk`` that holds GRUB; ``serial`` is its id.

    Raises:
        HostError: GRUB for EFI, dosfstools or mtools are not installed, or there is no space.
    """
    with tempfile.TemporaryDirectory(prefix="isomark-") as folder:
        partition, program = Path(folder) / "partition", Path(folder) / "grub.efi"
        program.write_bytes(_mkimage("x86_64-efi", _COMMON))
        _run(
            ["mkfs.vfat", "--invariant", "-i", f"{serial:08x}", "-n", "EFI", "-C", str(partition), str(EFI_BYTES >> 10)]
        )
        _run(["mmd", "-i", str(partition), "::/EFI", "::/EFI/BOOT"])
        _run(["mcopy", "-i", str(partition), str(program), _EFI_PATH])
        with disk.open("r+b") as file:
            file.seek(offset_bytes)
            file.write(partition.read_bytes())


def grub_config(version: str, arguments: Sequence[str]) -> str:
    """Return /boot/grub/grub.cfg: say that it is here, and boot kernel ``version`` without a menu."""
    return f"""\
serial --unit=0 --speed=115200
terminal_output serial
set gfxpayload=text
echo "isomark loader"
linux /boot/vmlinuz-{version} {" ".join(arguments)}
initrd /boot/initrd.img-{version}
boot
"""


def _mkimage(form: str, modules: Sequence[str]) -> bytes:
    """Make GRUB's image of ``form`` with ``modules``, which finds its configuration on the root file system."""
    with tempfile.TemporaryDirectory(prefix="isomark-") as folder:
        first, image = Path(folder) / "first.cfg", Path(folder) / "image"
        first.write_text(_FIRST_STEPS)
        _read(_LIBRARY / form / "moddep.lst")
        _run(["grub-mkimage", "-O", form, "-c", str(first), "-p", "/boot/grub", "-o", str(image), *modules])
        return image.read_bytes()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise HostError(f"there is no {path}", hint="apt-get install grub-pc-bin grub-efi-amd64-bin") from error


def _run(command: Sequence[str]) -> None:
    try:
        environment = {**os.environ, **_FIXED_TIME}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, errors="replace")
    except FileNotFoundError as error:
        hint = "apt-get install grub-common dosfstools mtools"
        raise HostError(f"the program {command[0]} is not installed", hint=hint) from error
    if ended.returncode != 0:
        raise HostError(f"{command[0]} failed: {ended.stderr.strip()}", hint="df -h /tmp shows whether there is space")
