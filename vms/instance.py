"""A started virtual server, as the trial sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

from bench.channel import Channel
from bench.errors import ConsoleTimeout, DriverUnavailable, HostError, ImageError, InstanceError
from bench.model import Event, Line, MemoryReading, Step
from bench.units import KIB
from vms.deadline import T, in_time
from vms.standstill import standstill

if TYPE_CHECKING:
    import libvirt

    AskToEnd = Callable[[libvirt.virDomain], None]

Server = TypeVar("Server", bound="VirtualServer")

KILL_SECONDS: Final = 10.0
END_SECONDS: Final = 5.0
"""How long the hypervisor's end may come after that of the console."""
BALLOON_SIZES: Final = frozenset({"actual", "rss", "unused", "available", "usable", "disk_caches"})
"""What of libvirt's balloon statistics is the size of something, told in KiB."""
_NANOSECONDS: Final = 1e9


class Life(Protocol):
    """What keeps a domain running: a process of this host, or something that libvirt looks after."""

    @property
    def title(self) -> str:
        """What to call it in messages."""

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until it ended; return whether it did in time."""

    def kill(self) -> None:
        """End it at once; fine if it has ended."""

    def memory(self) -> MemoryReading:
        """What it costs its host now."""

    def last_words(self) -> list[str]:
        """What the hypervisor said about its end."""


def press_power_button(domain: libvirt.virDomain) -> None:
    """Ask a guest with an init system of its own to end: by ACPI, or for Xen by its own request, as libvirt knows."""
    domain.shutdown()


class VirtualServer:
    """One running domain."""

    def __init__(
        self,
        channel: Channel,
        life: Life,
        domain: libvirt.virDomain,
        ask_to_end: AskToEnd,
        address: str | None,
        own_disk_bytes: Callable[[], int],
    ) -> None:
        self._channel = channel
        self._life = life
        self._domain = domain
        self._ask_to_end = ask_to_end
        self._address = address
        self._own_disk_bytes = own_disk_bytes
        self._undo = ExitStack()
        self._ended = False

    def owns(self, undo: ExitStack) -> None:
        """Take over ``undo``, which removes from the host all that was made for it."""
        self._undo = undo

    @property
    def events(self) -> Sequence[Event]:
        """What happened so far, in order: spawned, kernel, init, ready, exited."""
        return self._channel.events

    @property
    def steps(self) -> Sequence[Step]:
        """What libvirt and the hypervisor did on the way, and what the guest's boot loader and systemd told."""
        return self._channel.steps

    @property
    def tail(self) -> Sequence[str]:
        """The last console lines, and what QEMU itself said at its end."""
        return self._channel.tail

    def lines(self, timeout_seconds: float) -> Iterator[Line]:
        """Yield console lines until the hypervisor closes it.

        Raises:
            ConsoleTimeout: ``timeout_seconds`` after the call the console is still open.
            ConsoleFlood: the guest printed too much.
            InstanceError: the console is still open, and the hypervisor has stopped the guest.
        """
        try:
            yield from self._channel.lines(timeout_seconds)
        except ConsoleTimeout as silence:
            if (reason := standstill(self._domain, silence.tail)) is not None:
                raise reason from silence
            raise
        self._await_end(END_SECONDS)

    def send(self, text: str) -> None:
        """Write one line to the payload's standard input.

        Raises:
            InstanceError: the hypervisor no longer reads it.
        """
        self._channel.send(text)

    def memory(self) -> MemoryReading:
        """Read what the QEMU process, and the memory cgroup libvirt made for it, cost the host now; or ask libvirt.

        Raises:
            InstanceError: the instance is gone.
        """
        return self._life.memory()

    def address(self) -> str | None:
        """The guest's address on the lab network."""
        return self._address

    def own_disk_bytes(self) -> int:
        """The blocks allocated for the files that only this guest has: overlay, initramfs or seed, UEFI's variables.

        Raises:
            InstanceError: libvirt does not tell.
        """
        return self._own_disk_bytes()

    def balloon(self) -> Mapping[str, int]:
        """What libvirt's virDomainMemoryStats tells in sizes, in bytes by its names there.

        Raises:
            InstanceError: the instance is gone.
        """
        known = self._in_time("tell the guest's memory", self._domain.memoryStats)
        return {name: count * KIB for name, count in known.items() if name in BALLOON_SIZES}

    def cpu_seconds(self) -> float:
        """The CPU time that the domain has used on its host, as libvirt says.

        Raises:
            InstanceError: the instance is gone.
        """
        return float(self._in_time("tell the guest's CPU time", self._domain.info)[4]) / _NANOSECONDS

    def stop(self, timeout_seconds: float) -> bool:
        """Ask the guest to end the payload and power off; return whether it ended in time.

        A user's image does only if something in it, like systemd-logind, listens to the power button.
        """
        if not self._life.wait(0):
            self._ask()
        return self._await_end(timeout_seconds)

    def kill(self) -> None:
        """End the hypervisor at once; idempotent.

        libvirt's destroy polls until process 1 has reaped QEMU, which takes seconds where that is a
        slow one; killed directly it is dead in milliseconds and libvirt notices by itself.

        Raises:
            HostError: it does not die.
        """
        self._life.kill()
        if not self._await_end(KILL_SECONDS):
            raise HostError(f"{self._life.title} does not die", hint="dmesg of its host may say what it waits for")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _ask(self) -> None:
        self._in_time("ask the guest to end", partial(self._ask_to_end, self._domain))

    def _in_time(self, what: str, call: Callable[[], T]) -> T:
        return in_time(what, call, self._give_up, self._channel.tail)

    def _give_up(self) -> None:
        """End what libvirt waits for, where that is possible without libvirt."""

    def _await_end(self, timeout_seconds: float) -> bool:
        if not self._life.wait(timeout_seconds):
            return False
        if not self._ended:
            self._ended = True
            self._channel.push("exited")
            if not any(line.startswith("isomark exit ") for line in self._channel.tail):
                self._channel.tail.extend(f"[{line}]" for line in self._life.last_words())
        return True


def started(start: Callable[[ExitStack], Server]) -> Server:
    """Return what ``start`` starts, which then owns what that has put on its stack; if it fails, that is undone.

    Raises:
        InstanceError: it failed, whatever refused it.
    """
    try:
        with ExitStack() as undo:
            server = start(undo)
            server.owns(undo.pop_all())
            return server
    except (HostError, ImageError, DriverUnavailable) as error:
        raise InstanceError(error.message, hint=error.hint) from error
    except OSError as error:
        raise InstanceError(f"the host refused: {error}", hint="df -h and isomark doctor may say why") from error
