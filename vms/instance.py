"""A started virtual server, as the trial sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from bench.channel import Channel
from bench.errors import HostError
from bench.model import Event, Line, MemoryReading
from vms.connection import told
from vms.log import last_words
from vms.process import Hypervisor

if TYPE_CHECKING:
    import libvirt

KILL_SECONDS: Final = 10.0
END_SECONDS: Final = 2.0
"""How long QEMU's end may come after that of the console."""
_CTRL_ALT_DEL: Final = (29, 56, 111)
"""KEY_LEFTCTRL, KEY_LEFTALT, KEY_DELETE (Linux, input-event-codes.h)."""
_KEY_MILLISECONDS: Final = 50


class VirtualServer:
    """One running domain."""

    def __init__(
        self, channel: Channel, hypervisor: Hypervisor, domain: libvirt.virDomain, address: str | None
    ) -> None:
        self._channel = channel
        self._hypervisor = hypervisor
        self._domain = domain
        self._address = address
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
    def tail(self) -> Sequence[str]:
        """The last console lines, and what QEMU itself said at its end."""
        return self._channel.tail

    def lines(self, timeout_seconds: float) -> Iterator[Line]:
        """Yield console lines until the hypervisor closes it.

        Raises:
            ConsoleTimeout: ``timeout_seconds`` after the call the console is still open.
            ConsoleFlood: the guest printed too much.
        """
        yield from self._channel.lines(timeout_seconds)
        self._await_end(END_SECONDS)

    def send(self, text: str) -> None:
        """Write one line to the payload's standard input.

        Raises:
            InstanceError: the hypervisor no longer reads it.
        """
        self._channel.send(text)

    def memory(self) -> MemoryReading:
        """Read what the QEMU process, and the memory cgroup libvirt made for it, cost the host now.

        Raises:
            InstanceError: the instance is gone.
        """
        return self._hypervisor.memory()

    def address(self) -> str | None:
        """The guest's address on the lab network."""
        return self._address

    def stop(self, timeout_seconds: float) -> bool:
        """Press Ctrl-Alt-Del, at which the guest's init sends SIGTERM to the payload and powers off after it.

        The ACPI power button would need a daemon and two kernel modules in the guest, which every
        boot would pay for. Return whether it ended in time; a guest without our init never does.
        """
        if not self._hypervisor.wait(0):
            import libvirt

            with told("libvirt cannot press keys"):
                keys = list(_CTRL_ALT_DEL)
                self._domain.sendKey(libvirt.VIR_KEYCODE_SET_LINUX, _KEY_MILLISECONDS, keys, len(keys), 0)
        return self._await_end(timeout_seconds)

    def kill(self) -> None:
        """End the hypervisor at once; idempotent.

        libvirt's destroy polls until process 1 has reaped QEMU, which takes seconds where that is a
        slow one; killed directly it is dead in milliseconds and libvirt notices by itself.

        Raises:
            HostError: it does not die.
        """
        self._hypervisor.kill()
        if not self._await_end(KILL_SECONDS):
            raise HostError(f"QEMU process {self._hypervisor.pid} does not die", hint="dmesg may say what it waits for")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _await_end(self, timeout_seconds: float) -> bool:
        if not self._hypervisor.wait(timeout_seconds):
            return False
        if not self._ended:
            self._ended = True
            self._channel.push("exited")
            if not any(line.startswith("isomark exit ") for line in self._channel.tail):
                self._channel.tail.extend(f"[{line}]" for line in last_words(self._domain.name()))
        return True
