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
from urllib.parse import SplitResult, urlsplit
from xml.etree import ElementTree as ET

from bench.errors import DriverUnavailable, InstanceError
from vms.events import LOOP
from vms.opening import open_in_time
from vms.remedies import connecting_hint, hint_for

if TYPE_CHECKING:
    import libvirt

    from vms.domain import Platform

URI_VARIABLE: Final = "ISOMARK_LIBVIRT_URI"
SYSTEM_URI: Final = "qemu:///system"

RETURN_SECONDS: Final = 5.0
"""How long a libvirtd that was there before may take to come back."""
CONNECT_SECONDS: Final = 30.0
"""How long a host may take to let us in: libvirt itself would wait for ever."""
_KEEPALIVE_SECONDS: Final = 5
_KEEPALIVE_COUNT: Final = 3
"""A libvirtd that does not answer for 15 s is gone, or hangs."""
_RETRY_SECONDS: Final = 0.1


def uri(platform: Platform | None = None) -> str:
    """Where the guests of ``platform`` run: its variable, else its default; QEMU's without one."""
    if platform is None:
        return os.environ.get(URI_VARIABLE) or SYSTEM_URI
    return os.environ.get(platform.uri_variable) or platform.default_uri


def is_remote(address: str) -> bool:
    """Whether libvirt URI ``address`` names a host: its files then are not ours to write, even were it this one.

    The transport ``ext`` names none, and its command may lead anywhere.
    """
    parts = _split(address)
    return bool(parts.netloc) or parts.scheme.endswith("+ext")


def shown(text: str, address: str) -> str:
    """Return ``text`` about libvirt URI ``address`` without the password that the URI may hold."""
    password = _split(address).password
    return text.replace(f":{password}@", "@") if password else text


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

    def lose(self) -> None:
        """Say that nobody will know of its end."""
        if not self.ended.is_set():
            self.lost = True
            self.end()


class Connection:
    """libvirt at ``address``; use ``open()`` for each request, which notices a libvirtd that came back."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._handle: libvirt.virConnect | None = None
        self._listening = -1
        self._watches: dict[str, Watch] = {}
        self._silent_until = 0.0
        self.alone = threading.Lock()
        """For who shares it with other threads: of two calls at once on one connection, the second may write into the
        stack of the first (libvirt up to 10.2, CVE-2024-4418)."""

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

    def look_up(self, uuid: str) -> libvirt.virDomain:
        """Return the domain with ``uuid``.

        Raises:
            DriverUnavailable: libvirt does not answer.
            libvirt.libvirtError: there is none, or libvirt cannot tell.
        """
        with self.alone:
            return self.open().lookupByUUIDString(uuid)

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

        if time.monotonic() < self._silent_until:  # an end has many steps; they are not to wait one after another
            raise self._unavailable("it was silent a moment ago")
        # without a handler of ours libvirt prints each error on stderr
        libvirt.registerErrorHandler(_keep_silent, None)
        LOOP.hold()
        try:
            handle = open_in_time(self.address, CONNECT_SECONDS)
            self._listening = handle.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, _Listener(self._watches).told, None
            )
            handle.registerCloseCallback(_Listener(self._watches).closed, None)
            _keep_alive(handle)
        except (libvirt.libvirtError, TimeoutError) as error:
            LOOP.release()
            if isinstance(error, TimeoutError):
                self._silent_until = time.monotonic() + RETURN_SECONDS
            raise self._unavailable(str(error)) from error
        self._handle = handle
        return handle

    def _unavailable(self, text: str) -> DriverUnavailable:
        text = shown(text.splitlines()[-1], self.address)  # ssh's warnings are a page; the last line says what it did
        address = shown(self.address, self.address)
        return DriverUnavailable(
            f"libvirt at {address} does not answer: {text}",
            hint=connecting_hint(text, address, remote=is_remote(address)),
        )


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # libvirt will say what is wrong with it
        return urlsplit("")


def _keep_alive(handle: libvirt.virConnect) -> None:
    """Notice a libvirtd that no longer answers; where libvirt runs in this process there is none."""
    import libvirt

    try:
        handle.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise


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
            watch.lose()


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


def _keep_silent(_context: object, _error: object) -> None:
    """Errors arrive as exceptions too."""


def _dotted(number: int) -> str:
    """Unpack a version, which libvirt packs as major * 1,000,000 + minor * 1,000 + release (virConnectGetVersion)."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
