"""The connection to libvirt: opened when needed, opened again when libvirtd was restarted, its errors made ours."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

from bench.errors import DriverUnavailable, InstanceError
from vms.events import LOOP

if TYPE_CHECKING:
    import libvirt

    from vms.domain import Platform

URI_VARIABLE: Final = "ISOMARK_LIBVIRT_URI"
SYSTEM_URI: Final = "qemu:///system"

RETURN_SECONDS: Final = 5.0
"""How long a libvirtd that was there before may take to come back."""
_KEEPALIVE_SECONDS: Final = 5
_KEEPALIVE_COUNT: Final = 3
"""A remote host that does not answer for 15 s is gone."""
_RETRY_SECONDS: Final = 0.1

_HINTS: Final = (
    ("permission denied", "isomark doctor says which directory libvirt's user cannot enter"),
    ("no space left", "df -h on libvirt's host shows which file system is full"),
    ("cannot allocate memory", "grant less memory, or free some on the host"),
    ("emulator does not support machine type", "virsh domcapabilities lists the machine types of this QEMU"),
    ("is not supported by emulator", "virsh domcapabilities lists the machine types of this QEMU"),
    ("/dev/kvm", "isomark doctor says what KVM lacks; the driver qemu needs none"),
    ("does not support virt type 'kvm'", "isomark doctor says what KVM lacks; the driver qemu needs none"),
    ("domain type kvm", "isomark doctor says what KVM lacks; the driver qemu needs none"),
    ("already exists", "isomark clean removes what dead runs left; a domain without isomark's mark is somebody else's"),
    ("cannot recv data", "libvirtd ended or was restarted; script/bootstrap starts it"),
    ("end of file while reading", "libvirtd ended or was restarted; script/bootstrap starts it"),
    ("unable to read from monitor", "the hypervisor ended; its last lines may say why"),
    ("libxenlight failed to create", "a kernel that Xen cannot enter, or too little memory (xl info); its host's log: "
     "/var/log/libvirt/libxl"),
)  # fmt: skip

_CONNECTING: Final = (
    ("authentication", "the login was refused: virsh -c {uri} list must work without a question (libvirt's auth.conf)"),
    ("certificate", "the certificates in /etc/pki/libvirt do not fit that host; virt-pki-validate says why"),
    ("no connection driver available", "set ISOMARK_LIBVIRT_URI to one like qemu:///system, ISOMARK_XEN_URI to one like xen+tcp://HOST/system"),
    ("unable to resolve", "the host's name in {uri} is not known"),
    ("cannot recv data", "virsh -c {uri} list must work without a question: for ssh a key, for tunnels their command"),
    ("host key", "log in once with ssh, so that the host's key is known"),
    ("transport in url", "transports are unix, ssh, tcp, tls, ext and libssh2, as in qemu+ssh://HOST/system"),
)  # fmt: skip


def uri(platform: Platform | None = None) -> str:
    """Where the guests of ``platform`` run: its variable, else its default; QEMU's without one."""
    if platform is None:
        return os.environ.get(URI_VARIABLE) or SYSTEM_URI
    return os.environ.get(platform.uri_variable) or platform.default_uri


def is_remote(address: str) -> bool:
    """Whether libvirt URI ``address`` names a host: its files then are not ours to write, even were it this one."""
    return bool(urlsplit(address).netloc)


@dataclass(frozen=True)
class User:
    """The user that libvirt runs QEMU as."""

    uid: int
    gid: int


@dataclass
class Watch:
    """Waits for the end of one domain. ``lost``: not the domain ended but the connection, and nobody knows of it."""

    uuid: str
    ended: threading.Event = field(default_factory=threading.Event)
    lost: bool = False
    crashed: bool = False
    then: Callable[[], None] | None = None

    def end(self) -> None:
        """Say that it ended; called by libvirt's event loop."""
        if not self.ended.is_set():
            self.ended.set()
            if self.then is not None:
                self.then()


class Connection:
    """libvirt at ``address``; use ``open()`` for each request, which notices a libvirtd that came back."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._handle: libvirt.virConnect | None = None
        self._listening = -1
        self._watches: dict[str, Watch] = {}

    def open(self) -> libvirt.virConnect:
        """Return a live connection; one that was lost is opened again, with patience for a libvirtd that restarts.

        Raises:
            DriverUnavailable: libvirt does not answer.
        """
        if self._handle is not None and self._handle.isAlive():
            return self._handle
        patience = 0.0 if self._handle is None else RETURN_SECONDS
        self.close()
        deadline = time.monotonic() + patience
        while True:
            try:
                return self._connect()
            except DriverUnavailable:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_SECONDS)

    def watch(self, uuid: str) -> Watch:
        """Watch for the end of domain ``uuid``; call before it is started, and ``forget`` afterwards."""
        return self._watches.setdefault(uuid, Watch(uuid))

    def forget(self, watch: Watch) -> None:
        """Stop watching; idempotent."""
        self._watches.pop(watch.uuid, None)

    def close(self) -> None:
        """Close it; libvirt then destroys what is left of the domains tied to it. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _shut(handle, self._listening)
            del handle  # the loop's last turn is to find it gone
            LOOP.release()

    def versions(self) -> tuple[str, str]:
        """Return the versions of libvirt and the hypervisor."""
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

    def _connect(self) -> libvirt.virConnect:
        import libvirt

        # without a handler of ours libvirt prints each error on stderr
        libvirt.registerErrorHandler(_keep_silent, None)
        LOOP.hold()
        try:
            handle = libvirt.open(self.address)
            self._listening = handle.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, _Listener(self._watches).told, None
            )
            handle.registerCloseCallback(_Listener(self._watches).closed, None)
            if is_remote(self.address) and not self.address.startswith("test"):
                handle.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
        except libvirt.libvirtError as error:
            LOOP.release()
            raise DriverUnavailable(
                f"libvirt at {self.address} does not answer: {error}", hint=_connecting_hint(str(error), self.address)
            ) from error
        self._handle = handle
        return handle


def _shut(handle: libvirt.virConnect, listening: int) -> None:
    import libvirt

    for step in (partial(handle.domainEventDeregisterAny, listening), handle.unregisterCloseCallback, handle.close):
        try:
            step()
        except libvirt.libvirtError:  # libvirtd is gone, and its connections with it
            continue


class _Listener:
    """What libvirt's event loop calls. It does not know the connection, which else would hold itself alive."""

    def __init__(self, watches: dict[str, Watch]) -> None:
        self._watches = watches

    def told(self, _conn: object, domain: libvirt.virDomain, event: int, detail: int, _: object) -> None:
        import libvirt

        crashed = event == libvirt.VIR_DOMAIN_EVENT_CRASHED or (
            event == libvirt.VIR_DOMAIN_EVENT_STOPPED and detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED
        )
        if event not in {libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_CRASHED}:
            return
        watch = self._watches.get(domain.UUIDString())
        if watch is not None:
            watch.crashed = crashed
            watch.end()

    def closed(self, _conn: object, _reason: int, _: object) -> None:
        for watch in list(self._watches.values()):
            if not watch.ended.is_set():
                watch.lost = True
                watch.end()


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


def _connecting_hint(text: str, address: str) -> str:
    """What helps when no connection comes about."""
    known = (hint.format(uri=address) for fragment, hint in _CONNECTING if fragment in text.lower())
    if is_remote(address) or any(fragment in text.lower() for fragment, _ in _CONNECTING):
        return next(known, f"does virsh -c {address} list work? libvirtd must listen there and be let through")
    return next(known, "script/bootstrap, or: virtlogd -d; libvirtd -d")


def _keep_silent(_context: object, _error: object) -> None:
    """Errors arrive as exceptions too."""


def _dotted(number: int) -> str:
    """Unpack a version, which libvirt packs as major * 1,000,000 + minor * 1,000 + release (virConnectGetVersion)."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
