"""The domains that isomark started, wherever its drivers start them: found by the metadata that they carry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from bench.errors import DriverUnavailable, UsageError
from bench.units import KIB
from vms.connection import Connection, told, uri
from vms.domain import NAMESPACE
from vms.qemu import QEMU
from vms.xen import XEN_PV

if TYPE_CHECKING:
    import libvirt

_STATES: Final = ("no state", "running", "blocked", "paused", "shutting down", "off", "crashed", "suspended")
"""Of virDomainState, by their numbers."""


@dataclass(frozen=True)
class OwnDomain:
    """One of our domains; ``handle`` lives as long as its connection."""

    address: str
    name: str
    uuid: str
    owner: str
    state: str
    cpus: int
    memory_bytes: int
    handle: libvirt.virDomain


def addresses() -> list[str]:
    """Where the drivers start domains: the URIs of QEMU and Xen."""
    return [uri(QEMU), uri(XEN_PV)]


def own_domains(connections: Iterable[Connection]) -> tuple[list[OwnDomain], list[DriverUnavailable]]:
    """Return our domains at ``connections``, by name, and why those that do not answer were passed over.

    Raises:
        InstanceError: libvirt refuses to list them.
    """
    found: list[OwnDomain] = []
    silent: list[DriverUnavailable] = []
    for connection in connections:
        try:
            handle = connection.open()
        except DriverUnavailable as error:
            silent.append(error)
            continue
        with told("libvirt does not list its domains"):
            domains = handle.listAllDomains()
        found += [own for domain in domains if (own := _described(connection.address, domain)) is not None]
    return sorted(found, key=lambda own: own.name), silent


def find_own(name: str, domains: Iterable[OwnDomain]) -> OwnDomain:
    """Return the one of ``domains`` that is called ``name``, or whose UUID begins with it.

    Raises:
        UsageError: there is none, or there are several.
    """
    found = [own for own in domains if own.name == name or own.uuid.startswith(name)]
    if not found:
        raise UsageError(f"isomark runs no virtual server {name}", hint="isomark vm ls lists them")
    if len(found) > 1:
        raise UsageError(f"{name} may be any of {', '.join(own.uuid for own in found)}", hint="give more of the UUID")
    return found[0]


def _described(address: str, domain: libvirt.virDomain) -> OwnDomain | None:
    """What ``domain`` is; ``None`` if it is somebody else's, or gone meanwhile."""
    import libvirt

    try:
        mark = ET.fromstring(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE))
        state, memory, _, cpus, _ = domain.info()
        name, uuid = domain.name(), domain.UUIDString()
    except libvirt.libvirtError:
        return None
    return OwnDomain(address, name, uuid, mark.get("owner", ""), _STATES[state], cpus, memory * KIB, domain)
