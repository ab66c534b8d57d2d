"""The hypervisor's process on this host: found by its domain's UUID, watched and killed through a pidfd."""

from __future__ import annotations

import itertools
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from bench.errors import InstanceError
from bench.journal import OWNER_VARIABLE
from bench.memory import read_memory
from bench.model import MemoryReading
from vms.helpers import domain_group, helpers, is_sharing
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
        """Sum the proportional set sizes of the process, its descendants and its helpers (proc(5), smaps_rollup).

        Raises:
            InstanceError: it ended, its memory may not be read, or a helper that it has is not to be found.
        """
        try:
            beside = helpers(self.pid)
            if not beside and is_sharing(self.pid):
                raise InstanceError(
                    "the daemon that shares a directory with the guest is not to be found, and its memory unknown",
                    hint="libvirt makes no cgroup for its domains: cgroup_controllers in /etc/libvirt/qemu.conf",
                )
            reading = read_memory({*family(self.pid), *beside}, cgroup_bytes(self.pid))
        except (FileNotFoundError, ProcessLookupError):
            reading = None
        if reading is None or self.wait(0):
            raise InstanceError("the instance is gone", hint="its last console lines may say why")
        return reading


def find_hypervisors(uuid: str) -> list[int]:
    """The QEMU processes that were started with ``-uuid UUID``, as libvirt starts them."""
    return find_processes(lambda words: _is_hypervisor(words, uuid.encode()))


def find_processes(is_meant: Callable[[list[bytes]], bool]) -> list[int]:
    """The processes whose command line ``is_meant``, an empty word at its end."""
    return [pid for pid in _pids() if is_meant(read_proc(pid, "cmdline").split(b"\0"))]


def find_own_hypervisors(uuid: str) -> list[int]:
    """Those of them that a run of ours started: they carry its mark in their environment, as their domains say."""
    return [
        pid for pid in find_hypervisors(uuid) if any(_is_mark(word) for word in read_proc(pid, "environ").split(b"\0"))
    ]


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
    own = domain_group(path)
    whole = PurePosixPath(path.lstrip("/"))
    for group in (whole, *whole.parents):
        if own is None or not group.is_relative_to(own):
            return None
        if (figure := root / group / name).exists():
            return int(figure.read_text())
    return None


def _is_mark(word: bytes) -> bool:
    return word.startswith(f"{OWNER_VARIABLE}=".encode())


def _is_hypervisor(words: list[bytes], uuid: bytes) -> bool:
    named = any(a == b"-uuid" and b == uuid for a, b in itertools.pairwise(words))
    return named and b"qemu" in Path(os.fsdecode(words[0])).name.encode()


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def read_proc(pid: int, name: str) -> bytes:
    """The file ``name`` of process ``pid`` (proc(5)); empty if it ended, or belongs to somebody else."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
