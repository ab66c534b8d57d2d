"""Getting a domain to run with its console in our hands: as a process of this host, or wherever libvirt has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from bench.model import Step
from vms.connection import Connection, User, told
from vms.console import ConsoleListener
from vms.instance import Life
from vms.life import ManagedLife
from vms.process import Hypervisor
from vms.stream import ConsoleStream

if TYPE_CHECKING:
    import libvirt

CREATE: Final = "create the domain"
HYPERVISOR: Final = "hypervisor sets up the machine"
"""From its opening the console, which is among the first things that QEMU does."""
CONSOLE: Final = "open the console"
RUN: Final = "let it run"
"""From then on the virtual CPUs run."""


Start = Callable[[bool], "libvirt.virDomain"]
"""Starts the domain, anew or from a file; the argument says whether it has to wait for being let run."""


@dataclass(frozen=True)
class Running:
    """A domain that runs: its console's descriptor, and what libvirt and the hypervisor did when."""

    console: int
    life: Life
    handle: libvirt.virDomain
    steps: tuple[Step, ...]


class Place(Protocol):
    """Where one domain runs, as often as it is started there; a context manager that lets go of all of it."""

    def run(self, start: Start) -> Running:
        """Have ``start`` start the domain, which does not run; the caller closes the console.

        Raises:
            InstanceError: it does not start.
        """


class Here(ExitStack):
    """This host: QEMU connects its console to a socket of ours at ``path``, by which its process is known too.

    Raises:
        InstanceError: the path is too long for a socket.
        OSError: the socket cannot be made.
    """

    def __init__(self, path: Path, name: str, user: User | None) -> None:
        super().__init__()
        self._name = name
        self._listener = self.enter_context(ConsoleListener(path, user))

    def run(self, start: Start) -> Running:
        """Start it running at once: nothing is lost, because QEMU connects first."""
        asked = time.monotonic()
        with ThreadPoolExecutor(1) as thread, self._listener.given_up_on_error():
            accepting = thread.submit(self._listener.accept)
            handle = start(False)
            running = time.monotonic()
            console, pid, connected = accepting.result()
        life = self.enter_context(Hypervisor(pid, self._name))
        return Running(console, life, handle, (Step(CREATE, asked), Step(HYPERVISOR, connected), Step(RUN, running)))


class ThroughLibvirt(ExitStack):
    """Wherever ``connection`` leads: libvirt carries the console and tells of the end.

    The console is opened before the domain runs, so that nothing is lost. (QEMU drops what is written to a pseudo
    terminal that nobody has opened; Xen's console daemon keeps it.)
    """

    def __init__(self, connection: Connection, uuid: str) -> None:
        super().__init__()
        self._connection = connection
        self._uuid = uuid

    def run(self, start: Start) -> Running:
        """Start it paused, open its console, let it run."""
        self.close()  # what is left of the start before
        connection = self._connection
        watch = connection.watch(self._uuid)
        self.callback(connection.forget, watch)
        asked = time.monotonic()
        handle = start(True)
        created = time.monotonic()
        with told("libvirt cannot open the guest's console"):
            stream = ConsoleStream(connection.open(), handle)
        self.callback(stream.close)
        watch.then = stream.linger
        run = time.monotonic()
        with told("libvirt does not let the domain run"):
            handle.resume()
        life = ManagedLife(handle, watch, connection.address)
        return Running(stream.detach(), life, handle, (Step(CREATE, asked), Step(CONSOLE, created), Step(RUN, run)))
