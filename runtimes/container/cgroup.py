"""The cgroup of one container: limits, readings, removal; one interface over versions 1 and 2.

Files and their meaning: kernel, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/*.rst.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.errors import HostError
from bench.model import Limits
from runtimes.container.hierarchy import OUR_GROUP, REQUIRED, Layout, detect

PERIOD_MICROSECONDS: Final = 100_000
REMOVE_SECONDS: Final = 10.0
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)?")


class Group:
    """A container's cgroup in every hierarchy that limits or counts something."""

    def __init__(self, layout: Layout, name: str, limits: Limits) -> None:
        """Create group ``name`` (``OWNER/NAME``) with ``limits``.

        Raises:
            HostError: a controller is missing or the kernel refuses.
        """
        layout.require()
        self._name = name
        self._layout = layout
        self._paths: dict[str, Path] = {}
        for hierarchy in layout.hierarchies:
            wanted = hierarchy.controllers & {*REQUIRED, "cpuacct"}
            if wanted:
                path = hierarchy.make(name, wanted)
                self._paths |= dict.fromkeys(wanted, path)
        self._directories = tuple(dict.fromkeys(self._paths.values()))
        self._v2 = {name for name in REQUIRED if _held_by(layout, name) == 2}
        self._limit(limits)

    def open_entrances(self, stack: ExitStack) -> tuple[int | None, list[int]]:
        """Descriptors by which a new process gets into the group, open as long as ``stack`` is.

        First the directory of the version 2 group if the layout uses one, to be born in (clone3(2),
        CLONE_INTO_CGROUP); then the ``tasks`` files of version 1, to write ``0`` to.
        """
        v2 = list(dict.fromkeys(self._paths[controller] for controller in REQUIRED if controller in self._v2))
        v1 = [path / "tasks" for path in self._directories if path not in v2]
        born = [_opened(stack, path, os.O_PATH | os.O_DIRECTORY) for path in v2]
        return (born[0] if born else None), [_opened(stack, path, os.O_WRONLY) for path in v1]

    def members(self) -> list[int]:
        """The processes in it and in the groups below, as the host numbers them."""
        return _members([self._paths["memory"]])

    def memory_bytes(self) -> int:
        """What the memory controller charges the group now, page cache and kernel memory included."""
        return int(_read(self._paths["memory"] / self._file("memory", "memory.usage_in_bytes", "memory.current")))

    def oom_kills(self) -> int | None:
        """Processes killed for exceeding the limit; ``None`` where the kernel, before 4.13, does not count."""
        return _field(
            _read(self._paths["memory"] / self._file("memory", "memory.oom_control", "memory.events")), "oom_kill"
        )

    def cpu_seconds(self) -> float | None:
        """CPU time used, user and system; ``None`` where nothing counts it."""
        if "cpu" in self._v2:
            used = _field(_read(self._paths["cpu"] / "cpu.stat"), "usage_usec")
            return None if used is None else used / 1e6
        if "cpuacct" not in self._paths:
            return None
        return int(_read(self._paths["cpuacct"] / "cpuacct.usage")) / 1e9

    def remove(self) -> None:
        """Kill what is in it and remove it; idempotent.

        Raises:
            HostError: it does not go away.
        """
        remove_group(self._layout, self._name)

    def _file(self, controller: str, v1: str, v2: str) -> str:
        return v2 if controller in self._v2 else v1

    def _limit(self, limits: Limits) -> None:
        cpu, memory = self._paths["cpu"], self._paths["memory"]
        quota = limits.cpus * PERIOD_MICROSECONDS
        if "cpu" in self._v2:
            _write(cpu / "cpu.max", f"{quota} {PERIOD_MICROSECONDS}")
        else:
            _write(cpu / "cpu.cfs_period_us", str(PERIOD_MICROSECONDS))
            _write(cpu / "cpu.cfs_quota_us", str(quota))
        _write(memory / self._file("memory", "memory.limit_in_bytes", "memory.max"), str(limits.memory_bytes))
        self._forbid_swap(memory, limits.memory_bytes)
        _write(self._paths["pids"] / "pids.max", str(limits.pids))

    def _forbid_swap(self, memory: Path, limit: int) -> None:
        """Swapping would turn a limit on memory into one on speed; without a swap controller, discourage it."""
        if "memory" in self._v2:
            choices = [("memory.swap.max", "0")]
        else:
            choices = [("memory.memsw.limit_in_bytes", str(limit)), ("memory.swappiness", "0")]
        for name, value in choices:
            if (memory / name).exists():
                _write(memory / name, value)
                return


def _opened(stack: ExitStack, path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def remove(what: Mapping[str, str], root: Path = Path("/")) -> None:
    """Kill everything in isomark's group ``what["name"]`` (``OWNER`` or ``OWNER/NAME``) and remove it; idempotent.

    Raises:
        HostError: it does not go away.
    """
    if not _NAME.fullmatch(what["name"]):
        raise HostError(f"{what['name']!r} is no cgroup of isomark")
    remove_group(detect(root), what["name"])


def remove_group(layout: Layout, name: str) -> None:
    """The same for who knows the layout, which takes as long to read as all the rest.

    Raises:
        HostError: it does not go away.
    """
    directories = [path for each in layout.hierarchies if (path := each.group(name)).is_dir()]
    deadline = time.monotonic() + REMOVE_SECONDS
    _empty(directories, deadline)
    for directory in directories:
        for below in reversed(list(_walk(directory))):
            _rmdir(below, deadline)
    if "/" not in name:
        for hierarchy in layout.hierarchies:
            _rmdir_if_unused(hierarchy.top / OUR_GROUP)


def _empty(directories: Sequence[Path], deadline: float) -> None:
    """Kill until nobody is left; a process in a frozen version 1 freezer ignores SIGKILL until it is thawed."""
    while pids := _members(directories):
        if time.monotonic() > deadline:
            raise HostError(
                f"processes {pids} in cgroup {directories[0]} do not die",
                hint="/proc/PID/cgroup names their freezer group: echo THAWED > …/freezer.state; or reboot",
            )
        for directory in directories:
            _thaw(directory)
            if (directory / "cgroup.kill").exists():  # version 2 since Linux 5.14
                _write(directory / "cgroup.kill", "1")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.001)


def _thaw(directory: Path) -> None:
    """Thaw the version 1 freezer group, its parent (the owner's) and those below."""
    for group in (directory.parent, *_walk(directory)):
        state = group / "freezer.state"
        if state.exists():
            _write(state, "THAWED")


def _rmdir(directory: Path, deadline: float) -> None:
    """Remove one group; the kernel says EBUSY until its last process is quite gone."""
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise HostError(f"cannot remove cgroup {directory}: {error.strerror}") from error
            time.sleep(0.001)
        else:
            return


def _rmdir_if_unused(directory: Path) -> None:
    """Remove isomark's own top group, unless another run has a group in it."""
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
            raise HostError(f"cannot remove cgroup {directory}: {error.strerror}") from error


def _walk(directory: Path) -> Iterator[Path]:
    """``directory`` and all groups below it, parents first."""
    for path, _, _ in os.walk(directory):
        yield Path(path)


def _members(directories: Sequence[Path]) -> list[int]:
    found: dict[int, None] = {}
    for directory in directories:
        for group in _walk(directory):
            try:
                pids = (group / "cgroup.procs").read_text().split()
            except (FileNotFoundError, OSError) as error:
                if isinstance(error, FileNotFoundError) or error.errno == errno.ENODEV:  # removed meanwhile
                    continue
                raise
            found |= dict.fromkeys(map(int, pids))
    return list(found)


def _held_by(layout: Layout, controller: str) -> int:
    hierarchy = layout.holding(controller)
    return 0 if hierarchy is None else hierarchy.version


def _field(text: str, name: str) -> int | None:
    """The number after ``name`` in a flat keyed file."""
    found = re.search(rf"^{name} (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    try:
        # only on a test's host of files is anything created or truncated
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"cannot write {text!r} to {path}: {error.strerror}") from error
