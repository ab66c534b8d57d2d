"""The connection to libvirt: opened when needed, opened again when libvirtd was restarted, its errors made ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from bench.errors import DriverUnavailable, InstanceError

if TYPE_CHECKING:
    import libvirt

URI_VARIABLE: Final = "ISOMARK_LIBVIRT_URI"
SYSTEM_URI: Final = "qemu:///system"

_HINTS: Final = (
    ("permission denied", "isomark doctor says which directory libvirt's user cannot enter"),
    ("no space left", "df -h shows which file system is full"),
    ("cannot allocate memory", "grant less memory, or free some on the host"),
    ("emulator does not support machine type", "virsh domcapabilities lists the machine types of this QEMU"),
    ("/dev/kvm", "isomark doctor says what KVM lacks; the driver qemu needs none"),
    ("does not support virt type 'kvm'", "isomark doctor says what KVM lacks; the driver qemu needs none"),
    ("domain type kvm", "isomark doctor says what KVM lacks; the driver qemu needs none"),
    ("already exists", "isomark clean removes what dead runs left"),
    ("cannot recv data", "libvirtd ended or was restarted; script/bootstrap starts it"),
    ("end of file while reading data", "libvirtd ended or was restarted; script/bootstrap starts it"),
)


def uri() -> str:
    """``$ISOMARK_LIBVIRT_URI``, else the system's QEMU."""
    return os.environ.get(URI_VARIABLE) or SYSTEM_URI


@dataclass(frozen=True)
class User:
    """The user that libvirt runs QEMU as."""

    uid: int
    gid: int


class Connection:
    """libvirt at ``address``; use ``open()`` for each request, which notices a libvirtd that came back."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._handle: libvirt.virConnect | None = None

    def open(self) -> libvirt.virConnect:
        """Return a live connection.

        Raises:
            DriverUnavailable: libvirt does not answer.
        """
        import libvirt

        if self._handle is not None and self._handle.isAlive():
            return self._handle
        # without a handler of ours libvirt prints each error on stderr
        libvirt.registerErrorHandler(_keep_silent, None)
        try:
            self._handle = libvirt.open(self.address)
        except libvirt.libvirtError as error:
            raise DriverUnavailable(
                f"libvirt at {self.address} does not answer: {error}",
                hint="script/bootstrap, or: virtlogd -d; libvirtd -d",
            ) from error
        return self._handle

    def close(self) -> None:
        """Close it; libvirt then destroys what is left of the domains started through it. Idempotent."""
        import libvirt

        if self._handle is not None:
            try:
                self._handle.close()
            except libvirt.libvirtError:  # libvirtd is gone, and its connections with it
                return
            finally:
                self._handle = None

    def versions(self) -> tuple[str, str]:
        """Return the versions of libvirt and QEMU."""
        with told():
            handle = self.open()
            return _dotted(handle.getLibVersion()), _dotted(handle.getVersion())

    def qemu_user(self) -> User | None:
        """Whom QEMU runs as, from the DAC security model; ``None`` where it is the caller (session mode)."""
        with told():
            host = ET.fromstring(self.open().getCapabilities())
        label = host.findtext("host/secmodel[model='dac']/baselabel")
        if not label:
            return None
        uid, gid = label.replace("+", "").split(":")
        return User(int(uid), int(gid))


@contextmanager
def told(doing: str = "libvirt refused") -> Iterator[None]:
    """Turn libvirt's errors into ours, with what would help where that is known.

    Raises:
        InstanceError: libvirt reported an error in the block.
    """
    import libvirt

    try:
        yield
    except libvirt.libvirtError as error:
        text = str(error)
        raise InstanceError(f"{doing}: {text}", hint=hint_for(text)) from error


def hint_for(text: str) -> str:
    """What helps against the libvirt error ``text``; libvirt's log where nothing better is known."""
    known = (hint for fragment, hint in _HINTS if fragment in text.lower())
    return next(known, "the log in /var/log/libvirt/qemu may say more")


def _keep_silent(_context: object, _error: object) -> None:
    """Errors arrive as exceptions too."""


def _dotted(number: int) -> str:
    """Unpack a version, which libvirt packs as major * 1,000,000 + minor * 1,000 + release (virConnectGetVersion)."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
