"""Getting a domain to run with its console in our hands: as a process of this host, or wherever libvirt has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from bench.errors import InstanceError
from bench.model import Step
from vms.connection import Connection, User, told
from vms.console import ConsoleListener, peer_pid
from vms.deadline import awaited, in_time
from vms.instance import Life
from vms.life import ManagedLife
from vms.process import Hypervisor
from vms.stream import ConsoleStream

if TYPE_CHECKING:
    import socket

    import libvirt

    Accepted = tuple[socket.socket, float]

CONNECT_SECONDS: Final = 10.0
"""How long QEMU's console may be missing when libvirt says that the domain is there."""
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

    def hang_up(self) -> None:
        """Let go of the console as far as libvirt has it: the domain is about to end (``vms.stream``)."""


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
        with ThreadPoolExecutor(1) as thread:
            accepting = thread.submit(self._listener.accept)
            try:
                handle = start(False)
                running = time.monotonic()
                peer, connected = _awaited(accepting)
            except BaseException:
                self._listener.give_up()
                accepting.add_done_callback(_hang_up)
                raise
        with peer:  # should the process be gone already
            life = self.enter_context(Hypervisor(peer_pid(peer), self._name))
            console = peer.detach()
        return Running(console, life, handle, (Step(CREATE, asked), Step(HYPERVISOR, connected), Step(RUN, running)))

    def hang_up(self) -> None:
        """Nothing of it is libvirt's."""


def _awaited(accepting: Future[Accepted]) -> Accepted:
    """The console of a QEMU that libvirt has started: there already, or never."""
    try:
        return accepting.result(CONNECT_SECONDS)
    except TimeoutError as error:
        raise InstanceError("the hypervisor did not open the guest's console") from error


def _hang_up(accepting: Future[Accepted]) -> None:
    """Close a console that came although the start failed."""
    if accepting.exception() is None:
        accepting.result()[0].close()


class ThroughLibvirt(ExitStack):
    """Wherever ``connection`` leads: libvirt carries the console and tells of the end.

    Consoles have a connection of their own, because each has a thread of its own (``vms.stream``).

    The console is opened before the domain runs, so that nothing is lost. (QEMU drops what is written to a pseudo
    terminal that nobody has opened; Xen's console daemon keeps it.)
    """

    def __init__(self, connection: Connection, consoles: Connection, uuid: str) -> None:
        super().__init__()
        self._connection = connection
        self._consoles = consoles
        self._uuid = uuid
        self._stream: ConsoleStream | None = None

    def run(self, start: Start) -> Running:
        """Start it paused, open its console, let it run."""
        self.close()  # what is left of the start before
        connection = self._connection
        watch = connection.watch(self._uuid)
        self.callback(connection.forget, watch)
        lost = self._consoles.watch(f"console of {self._uuid}")  # not of the domain: its end may come late
        self.callback(self._consoles.forget, lost)
        asked = time.monotonic()
        handle = start(True)
        created = time.monotonic()
        with told("libvirt cannot open the guest's console"):
            domain = awaited("find the domain", partial(self._consoles.look_up, self._uuid))
            self._stream = stream = ConsoleStream(self._consoles, domain)
        self.callback(stream.close)
        watch.then, lost.then = stream.linger, watch.lose
        if lost.ended.is_set():
            watch.lose()
        if watch.ended.is_set():
            stream.linger()
        run = time.monotonic()
        in_time("let the domain run", handle.resume)
        life = ManagedLife(handle, watch, connection.address, self.hang_up)
        return Running(stream.detach(), life, handle, (Step(CREATE, asked), Step(CONSOLE, created), Step(RUN, run)))

    def hang_up(self) -> None:
        """What the domain still says is lost; its end is told all the same."""
        if self._stream is not None:
            self._stream.hang_up()
