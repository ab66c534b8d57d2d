"""Removing the domains that a dead run left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from bench.errors import DriverUnavailable, HostError
from vms.connection import Connection
from vms.domain import NAMESPACE
from vms.graveyard import Graveyard
from vms.process import Hypervisor, find_hypervisors

if TYPE_CHECKING:
    import libvirt

KILL_SECONDS: Final = 10.0


def remove_domain(what: Mapping[str, str]) -> None:
    """Remove domain ``what["uuid"]`` at ``what["uri"]`` with its process; idempotent.

    A domain without our metadata is somebody else's, whatever its name, and is not touched. With
    libvirtd gone the process alone is killed, found by the UUID that nobody but its run chose.

    Raises:
        HostError: it is somebody else's, or does not die.
    """
    connection = Connection(what["uri"])
    try:
        domain = _look_up(connection, what["uuid"])
        if domain is not None and not _is_ours(domain):
            raise HostError(
                f"domain {domain.name()} was not started by isomark", hint="virsh destroy it yourself if you mean to"
            )
        kill_hypervisors(what["uuid"])
        graveyard = Graveyard(connection)
        graveyard.add(what["uuid"], what["name"])
        graveyard.close()
    finally:
        connection.close()


def kill_hypervisors(uuid: str) -> None:
    """Kill every QEMU that was started with ``uuid``.

    Raises:
        HostError: one does not die.
    """
    for pid in find_hypervisors(uuid):
        try:
            hypervisor = Hypervisor(pid)
        except ProcessLookupError:
            continue
        try:
            if pid in find_hypervisors(uuid):  # the descriptor pins the process that was looked at
                hypervisor.kill()
            if not hypervisor.wait(KILL_SECONDS):
                raise HostError(f"QEMU process {pid} does not die", hint="dmesg may say what it waits for")
        finally:
            hypervisor.close()


def _look_up(connection: Connection, uuid: str) -> libvirt.virDomain | None:
    import libvirt

    try:
        return connection.open().lookupByUUIDString(uuid)
    except DriverUnavailable:
        return None
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise HostError(f"libvirt cannot look for domain {uuid}: {error}", hint="script/bootstrap") from error


def _is_ours(domain: libvirt.virDomain) -> bool:
    import libvirt

    try:
        domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
    except libvirt.libvirtError as error:
        return bool(error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)  # it ended meanwhile
    return True
