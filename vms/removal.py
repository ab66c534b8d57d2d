"""Removing the domains that a dead run left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from bench.errors import DriverUnavailable, HostError
from vms.connection import Connection, is_remote, shown
from vms.domain import NAMESPACE
from vms.graveyard import Graveyard
from vms.life import destroy, find
from vms.log import logs_of, remove_log
from vms.lxc.life import kill_container
from vms.process import Hypervisor, find_own_hypervisors

if TYPE_CHECKING:
    import libvirt

KILL_SECONDS: Final = 10.0


def remove_domain(what: Mapping[str, str]) -> None:
    """Remove domain ``what["uuid"]`` at ``what["uri"]`` with its process; idempotent.

    A domain without our metadata is somebody else's, whatever its name, and is not touched. With
    libvirtd gone the process alone is killed, found by its UUID and our mark in its environment; what runs
    elsewhere stays in the journal until its host answers.

    Raises:
        HostError: it is somebody else's, or does not die, or its host does not answer.
    """
    connection = Connection(what["uri"])
    try:
        domain = _look_up(connection, what["uuid"])
        if domain is not None and not is_ours(domain):
            raise HostError(
                f"domain {domain.name()} was not started by isomark", hint="virsh destroy it yourself if you mean to"
            )
        if not is_process_here(what["uri"]):
            if domain is not None:
                destroy(domain)
            if is_container_here(what["uri"]):
                kill_container(what["name"], what["uuid"])
                remove_log(what["name"], logs_of(what["uri"]))
            return
        kill_hypervisors(what["uuid"])
        graveyard = Graveyard(connection)
        graveyard.add(what["uuid"], what["name"])
        graveyard.close()
    finally:
        connection.close()


def is_process_here(address: str) -> bool:
    """Whether domains at libvirt URI ``address`` are processes of this host."""
    return address.startswith("qemu") and not is_remote(address)


def is_container_here(address: str) -> bool:
    """Whether domains at libvirt URI ``address`` are containers of this host."""
    return address.startswith("lxc") and not is_remote(address)


def kill_hypervisors(uuid: str) -> None:
    """Kill every QEMU that a run of ours started with ``uuid``.

    Raises:
        HostError: one does not die.
    """
    for pid in find_own_hypervisors(uuid):
        try:
            hypervisor = Hypervisor(pid)
        except ProcessLookupError:
            continue
        try:
            if pid in find_own_hypervisors(uuid):  # the descriptor pins the process that was looked at
                hypervisor.kill()
            if not hypervisor.wait(KILL_SECONDS):
                raise HostError(f"QEMU process {pid} does not die", hint="dmesg may say what it waits for")
        finally:
            hypervisor.close()


def _look_up(connection: Connection, uuid: str) -> libvirt.virDomain | None:
    try:
        return find(connection, uuid)
    except DriverUnavailable as error:
        if is_process_here(connection.address) or is_container_here(connection.address):
            return None
        address = connection.address
        gone = address if shown(address, address) == address else "with its URI"  # a password is nothing to print
        raise HostError(
            error.message,
            hint=f"{error.hint}; its domain {uuid} may still run there; "
            f"if that host is no more: isomark clean --gone {gone}",
        ) from error


def is_ours(domain: libvirt.virDomain) -> bool:
    """Whether ``domain`` carries our metadata, or is gone."""
    import libvirt

    try:
        domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
    except libvirt.libvirtError as error:
        return bool(error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)  # it ended meanwhile
    return True
