"""What a host must have, beside what direct guests need, to make full guests and to boot them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from bench.errors import DriverUnavailable

OVMF_CODE: Final = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARIABLES: Final = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
"""What a guest under UEFI gets a copy of, to write to."""

_PROGRAMS: Final = {
    "apt-get": "apt",
    "depmod": "kmod",
    "grub-mkimage": "grub-common",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "unshare": "util-linux",
}
"""Program -> Debian package."""
_FILES: Final = {
    Path("/usr/lib/grub/i386-pc/boot.img"): "grub-pc-bin",
    Path("/usr/lib/grub/x86_64-efi/moddep.lst"): "grub-efi-amd64-bin",
}


def require_full() -> None:
    """Check that full guests can be made here.

    Raises:
        DriverUnavailable: a program or file is missing, or this is not root.
    """
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = {name: package for name, package in _PROGRAMS.items() if shutil.which(name, path=path) is None}
    missing |= {str(file): package for file, package in _FILES.items() if not file.exists()}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise DriverUnavailable(
            f"not installed: {', '.join(missing)}", hint=f"script/bootstrap, or: apt-get install {packages}"
        )
    if os.geteuid() != 0:
        raise DriverUnavailable("a full server is installed by root only", hint="run as root")


def require_uefi() -> None:
    """Check that there is a UEFI for guests to boot under.

    Raises:
        DriverUnavailable: there is none.
    """
    for file in (OVMF_CODE, OVMF_VARIABLES):
        if not file.exists():
            raise DriverUnavailable(f"there is no {file}", hint="script/bootstrap, or: apt-get install ovmf")
