"""The hypervisor's process on this host: found by its domain's UUID, watched and killed through a pidfd."""

from __future__ import annotations

import itertools
import os
import select
import signal
from pathlib import Path

from bench.errors import InstanceError
from bench.memory import read_memory
from bench.model import MemoryReading
from vms.log import last_words


class Hypervisor:
    """One QEMU process; holds a descriptor that pins it, so a later process of the same pid is never meant."""

    def __init__(self, pid: int, name: str = "") -> None:
        self.pid = pid
        self.title = f"QEMU process {pid}"
        self._name = name
        self._fd = os.pidfd_open(pid)

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until it ended; return whether it did in time."""
        if self._fd == -1:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_seconds) * 1000))

    def kill(self) -> None:
        """Send SIGKILL, if it still runs."""
        if self._fd != -1:
            try:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def close(self) -> None:
        """Let go of it; idempotent."""
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def last_words(self) -> list[str]:
        """What QEMU itself said last about the domain called ``name``."""
        return last_words(self._name) if self._name else []

    def memory(self) -> MemoryReading:
        """Sum the proportional set sizes of the process and its descendants (proc(5), smaps_rollup).

        Raises:
            InstanceError: it ended, or its memory may not be read.
        """
        try:
            reading = read_memory(family(self.pid), cgroup_bytes(self.pid))
        except (FileNotFoundError, ProcessLookupError):
            reading = None
        if reading is None or self.wait(0):
            raise InstanceError("the instance is gone", hint="its last console lines may say why")
        return reading


def find_hypervisors(uuid: str) -> list[int]:
    """The QEMU processes that were started with ``-uuid UUID``, as libvirt starts them."""
    return [pid for pid in _pids() if _is_hypervisor(_read(pid, "cmdline").split(b"\0"), uuid.encode())]


def family(pid: int) -> list[int]:
    """``pid`` and its descendants (proc(5), task/TID/children); without those that ended meanwhile."""
    found = [pid]
    for member in found:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def cgroup_bytes(pid: int, cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int | None:
    """Usage of the memory cgroup that libvirt made for the domain of ``pid``, ``None`` if there is none.

    With cgroup v2 QEMU's threads sit in children without a memory controller, so the nearest parent
    that has one counts; on hybrid hosts the memory controller is v1's.
    """
    for line in (proc / str(pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            return _usage(cgroups / "memory", path, "memory.usage_in_bytes")
    for line in (proc / str(pid) / "cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return _usage(cgroups, line[3:], "memory.current")
    return None


def _usage(root: Path, path: str, name: str) -> int | None:
    group = Path(path.lstrip("/"))
    while "qemu" in str(group):  # machine/qemu-1-NAME.libvirt-qemu, machine.slice/machine-qemu\x2d1\x2dNAME.scope
        if (figure := root / group / name).exists():
            return int(figure.read_text())
        group = group.parent
    return None


def _is_hypervisor(words: list[bytes], uuid: bytes) -> bool:
    named = any(a == b"-uuid" and b == uuid for a, b in itertools.pairwise(words))
    return named and b"qemu" in Path(os.fsdecode(words[0])).name.encode()


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it ended, or belongs to somebody else
        return b""
