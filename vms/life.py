"""A domain whose hypervisor is not ours to touch: on another host, or Xen's. libvirt tells and ends it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from bench.errors import HostError, InstanceError
from bench.model import MemoryReading
from bench.units import KIB
from vms.connection import Connection, Watch, shown
from vms.deadline import awaited, in_time
from vms.remedies import hint_for

if TYPE_CHECKING:
    import libvirt

GONE_SECONDS: Final = 10.0


class ManagedLife:
    """One running ``domain``, followed by the events that ``watch`` collects; ``hang_up`` lets go of its console."""

    def __init__(self, domain: libvirt.virDomain, watch: Watch, address: str, hang_up: Callable[[], None]) -> None:
        self._domain = domain
        self._watch = watch
        self._address = shown(address, address)
        self._hang_up = hang_up

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until it ended; return whether it did in time."""
        return self._watch.ended.wait(max(0.0, timeout_seconds))

    def kill(self) -> None:
        """Destroy it, if it still runs.

        Raises:
            HostError: libvirt does not do it.
        """
        if not self._watch.ended.is_set():
            self._hang_up()
            destroy(self._domain)

    def memory(self) -> MemoryReading:
        """Ask libvirt: QEMU's resident set, or what Xen allocated; what libvirt does not know is missing.

        Raises:
            InstanceError: the instance is gone.
        """
        if self._watch.ended.is_set():
            raise InstanceError("the instance is gone", hint="its last console lines may say why")
        known = in_time("tell the guest's memory", self._domain.memoryStats)
        kibibytes = known.get("rss", known.get("actual"))
        return MemoryReading(None, None, hypervisor_bytes=None if kibibytes is None else kibibytes * KIB)

    def last_words(self) -> list[str]:
        """Why it ended, as far as libvirt said so."""
        if self._watch.lost:
            return [f"the connection to {self._address} was lost"]
        return ["libvirt says that it crashed"] if self._watch.crashed else []

    @property
    def title(self) -> str:
        """What to call it in messages."""
        return f"the domain at {self._address}"


def destroy(domain: libvirt.virDomain) -> None:
    """Destroy ``domain``; fine if it is gone.

    Raises:
        HostError: it is still there.
    """
    import libvirt

    try:
        awaited("destroy the domain", domain.destroy)
    except InstanceError as error:
        raise HostError(error.message, hint=error.hint) from error
    except libvirt.libvirtError as error:
        if error.get_error_code() not in {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}:
            raise HostError(f"libvirt cannot destroy the domain: {error}", hint=hint_for(str(error))) from error


def find(connection: Connection, uuid: str) -> libvirt.virDomain | None:
    """Return domain ``uuid``; ``None`` if it is gone.

    Raises:
        HostError: libvirt cannot tell.
        DriverUnavailable: it cannot be asked.
    """
    import libvirt

    try:
        return awaited("find the domain", partial(connection.look_up, uuid))
    except InstanceError as error:
        raise HostError(error.message, hint=error.hint) from error
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise HostError(f"libvirt cannot look for domain {uuid}: {error}", hint=hint_for(str(error))) from error


def bury(connection: Connection, uuid: str) -> None:
    """Destroy domain ``uuid`` wherever it stands; fine if it is gone.

    Raises:
        HostError: it is still there.
        DriverUnavailable: libvirt cannot be asked.
    """
    domain = find(connection, uuid)
    if domain is not None:
        destroy(domain)
