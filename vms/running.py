"""Getting a domain to run with its console in our hands: as a process of this host, or wherever libvirt has it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.channel import Channel
from vms.connection import Connection, User, told
from vms.console import ConsoleListener
from vms.domain import Domain
from vms.instance import Life
from vms.life import ManagedLife
from vms.process import Hypervisor
from vms.stream import ConsoleStream

if TYPE_CHECKING:
    import libvirt

    Create = Callable[[str, int], libvirt.virDomain]


@dataclass(frozen=True)
class Running:
    """A domain that runs."""

    channel: Channel
    life: Life
    handle: libvirt.virDomain


def run_here(domain: Domain, xml: str, create: Create, user: User | None, undo: ExitStack) -> Running:
    """Start a QEMU that connects its console to a socket of ours, by which its process is known too.

    Raises:
        InstanceError: it does not start.
    """
    assert domain.console is not None
    listener = undo.enter_context(ConsoleListener(Path(domain.console), user))
    handle = create(xml, 0)
    fd, pid = listener.accept()
    channel = Channel(fd, fd)
    undo.callback(channel.close)
    return Running(channel, undo.enter_context(Hypervisor(pid, domain.name)), handle)


def run_through_libvirt(domain: Domain, xml: str, create: Create, connection: Connection, undo: ExitStack) -> Running:
    """Create the domain, open its console through libvirt, and only then let it run, so that nothing is lost.

    (QEMU drops what is written to a pseudo terminal that nobody has opened; Xen's console daemon keeps it.)

    Raises:
        InstanceError: it does not start.
    """
    import libvirt

    watch = connection.watch(domain.uuid)
    undo.callback(connection.forget, watch)
    handle = create(xml, libvirt.VIR_DOMAIN_START_PAUSED)
    with told("libvirt cannot open the guest's console"):
        stream = ConsoleStream(connection.open(), handle)
    undo.callback(stream.close)
    watch.then = stream.linger
    fd = stream.detach()
    channel = Channel(fd, fd)
    undo.callback(channel.close)
    with told("libvirt does not let the domain run"):
        handle.resume()
    return Running(channel, ManagedLife(handle, watch, connection.address), handle)
