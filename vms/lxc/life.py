"""A container's two processes on this host, both pinned: libvirt's controller, and process 1 of the container."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.errors import HostError, InstanceError
from bench.model import MemoryReading
from vms.log import last_lines
from vms.process import Hypervisor, family, find_processes, read_proc

KILL_SECONDS: Final = 10.0
NOTICE_SECONDS: Final = 2.0
"""How long a controller may take to notice its container's end, usually some milliseconds."""
LOGS: Final = Path("/var/log/libvirt/lxc")


class ContainerLife:
    """Follows controller ``pid``; ``undo`` lets go of its descriptors. It may have ended already."""

    def __init__(self, pid: int, name: str, undo: ExitStack) -> None:
        self.title = f"libvirt_lxc process {pid}"
        self._name = name
        self._controller = _pin(pid, undo)
        children = family(pid)[1:2] if self._controller is not None else []
        self._init = _pin(children[0], undo) if children else None

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the controller ended, which outlives the container; return whether it did in time."""
        return self._controller is None or self._controller.wait(timeout_seconds)

    def kill(self) -> None:
        """Kill process 1, whose end the kernel makes that of all in the container, and the controller notices.

        One that hangs does not, and is killed too.
        libvirt's destroy asks first, then sleeps a fifth of a second at a time (virCgroupKillPainfully).

        Raises:
            HostError: one does not die.
        """
        if self._init is not None:
            _see_off([self._init])
        if self._controller is not None and not (self._init is not None and self._controller.wait(NOTICE_SECONDS)):
            _see_off([self._controller])

    def memory(self) -> MemoryReading:
        """Sum up what the controller and all in the container cost, and what their cgroup is charged.

        Raises:
            InstanceError: it ended.
        """
        if self._controller is None:
            raise InstanceError("the instance is gone", hint="its last console lines may say why")
        return self._controller.memory()

    def last_words(self) -> list[str]:
        """The controller's last complaints, at most three."""
        return last_words(self._name)


def last_words(name: str, logs: Path = LOGS) -> list[str]:
    """The last errors in the log that libvirt keeps for the container called ``name``; none where there is no log."""
    return last_lines(name, logs, lambda line: ": error :" in line)


def kill_holders(name: str, pipe: int) -> None:
    """Kill what a start of container ``name`` left that holds the pipe of inode ``pipe``, and so is ours for certain.

    After a start that failed late libvirt forgets the controller and the process that it has forked already.

    Raises:
        HostError: one does not die.
    """
    _kill(name, lambda pid: _holds(pid, f"pipe:[{pipe}]"))


def kill_container(name: str, uuid: str) -> None:
    """Kill the container with ``uuid``, which libvirt puts into its environment, and its controller.

    Raises:
        HostError: one does not die.
    """
    needle = f"LIBVIRT_LXC_UUID={uuid}".encode()
    _kill(name, lambda pid: needle in read_proc(pid, "environ").split(b"\0"))


def _kill(name: str, is_ours: Callable[[int], bool]) -> None:
    """Kill the controllers of containers called ``name``, with all below, where one of these ``is_ours``."""
    for controller in find_processes(lambda words: _is_controller(words, name.encode())):
        with ExitStack() as brief:
            pids = family(controller)
            pinned = [_pin(pid, brief) for pid in reversed(pids)]
            if any(map(is_ours, pids)):  # asked when they are pinned
                _see_off([process for process in pinned if process is not None])


def _see_off(processes: list[Hypervisor]) -> None:
    """Kill ``processes``, and return only when they are dead."""
    for process in processes:
        process.kill()
    for process in processes:
        if not process.wait(KILL_SECONDS):
            raise HostError(f"process {process.pid} does not die", hint="dmesg may say what it waits for")


def _is_controller(words: list[bytes], name: bytes) -> bool:
    named = any(a == b"--name" and b == name for a, b in itertools.pairwise(words))
    return named and b"libvirt_lxc" in b" ".join(words)


def _holds(pid: int, target: str) -> bool:
    try:
        return any(link.readlink() == Path(target) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it ended
        return False


def _pin(pid: int, undo: ExitStack) -> Hypervisor | None:
    try:
        return undo.enter_context(Hypervisor(pid))
    except ProcessLookupError:
        return None
