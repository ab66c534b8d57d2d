"""What a host must have for virtual servers: programs, permissions, a /dev/kvm that libvirt's user may open."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal
from xml.etree import ElementTree as ET

from bench.errors import DriverUnavailable
from vms.access import blocked_directory, may_use
from vms.connection import Connection, User, told

KVM: Final = Path("/dev/kvm")
PROGRAMS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "lz4": "lz4",
}
"""Program -> Debian package."""
EMULATORS: Final = ("qemu-system-x86_64",)
"""Those of the programs that only the host of the guests needs."""

_QEMU_USERS: Final = ("libvirt-qemu", "qemu")
"""Whom Debian's and Fedora's libvirt run QEMU as."""

GIVING_REMEDY: Final = "run as root, or set ISOMARK_LIBVIRT_URI=qemu:///session, whose QEMU is yours"
KvmState = Literal["missing", "closed", "open"]
KVM_REMEDY: Final = "chown root:kvm /dev/kvm && chmod 660 /dev/kvm && usermod -aG kvm libvirt-qemu"
MISSING_KVM: Final = "there is no /dev/kvm: the kernel found no hardware virtualisation"
MISSING_KVM_REMEDY: Final = "enable it in the firmware, or nested virtualisation on the host of this machine"
CLOSED_KVM: Final = (
    "libvirt's user cannot open /dev/kvm: libvirt then asks QEMU for its abilities anew at each domain, about a minute"
)


def missing_programs() -> dict[str, str]:
    """Programs that are not installed, with their Debian packages."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return {name: package for name, package in PROGRAMS.items() if shutil.which(name, path=path) is None}


def require_programs(but: Sequence[str] = ()) -> None:
    """Check that every program is installed; those in ``but`` are another host's business.

    Raises:
        DriverUnavailable: one is not.
    """
    missing = {name: package for name, package in missing_programs().items() if name not in but}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise DriverUnavailable(
            f"not installed: {', '.join(missing)}", hint=f"script/bootstrap, or: apt-get install {packages}"
        )


def kvm_state(device: Path = KVM) -> KvmState:
    """Whether /dev/kvm is there and libvirt's user may open it; asked without libvirt, which might take a minute."""
    if not device.exists():
        return "missing"
    user = _default_user()
    return "open" if user is None or may_use(device, user, os.R_OK | os.W_OK) else "closed"


def require_usable_kvm(*, required: bool) -> None:
    """Check that /dev/kvm does not stand in the way, and is there if ``required``.

    Raises:
        DriverUnavailable: it does, or is not.
    """
    match kvm_state():
        case "missing" if required:
            raise DriverUnavailable(MISSING_KVM, hint=f"{MISSING_KVM_REMEDY}; the driver qemu needs none")
        case "closed":
            raise DriverUnavailable(CLOSED_KVM, hint=KVM_REMEDY)


def require_giving_to(user: User | None) -> None:
    """Check that files can be made those of QEMU's ``user`` (chown(2)).

    Raises:
        DriverUnavailable: they cannot.
    """
    if user is not None and os.geteuid() not in {0, user.uid}:
        raise DriverUnavailable(
            f"libvirt runs QEMU as user {user.uid}, whom only root can give a guest's files", hint=GIVING_REMEDY
        )


def require_open_directories(user: User | None, *directories: Path) -> None:
    """Check that QEMU's user can enter ``directories``.

    Raises:
        DriverUnavailable: it cannot.
    """
    if user is None:
        return
    for directory in directories:
        if (blocked := blocked_directory(directory, user)) is not None:
            raise DriverUnavailable(
                f"libvirt runs QEMU as user {user.uid}, which cannot enter {blocked}",
                hint=f"chmod o+x {blocked}, or set ISOMARK_STATE to a directory that everybody can enter",
            )


def is_nested_xen(connection: Connection) -> bool:
    """Whether the Xen at ``connection`` itself runs in a virtual machine: its CPU then says so (CPUID 1, ECX 31).

    Raises:
        DriverUnavailable, InstanceError: libvirt cannot be asked.
    """
    with told():
        capabilities = ET.fromstring(connection.open().getCapabilities())
    return capabilities.find("host/cpu/feature[@name='hypervisor']") is not None


def _default_user() -> User | None:
    for name in _QEMU_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return User(entry.pw_uid, entry.pw_gid)
    return None
