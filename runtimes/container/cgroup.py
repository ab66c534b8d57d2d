"""The cgroup of one container: made, limited, entered, frozen, read, removed; one interface over versions 1 and 2.

Light, and sparing: on version 1 a controller's hierarchy is used only for what is asked of it, and where version 2 is
mounted as well, it freezes, kills and counts CPU time, so that the freezer and cpuacct are left alone.
"""

from __future__ import annotations

import errno
import os
import time

from bench.errors import HostError
from runtimes import usernamespace
from runtimes.container import stats
from runtimes.container.hierarchy import OUR_GROUP, REQUIRED, detect, write
from runtimes.container.limiting import fill_cpuset, get, give_devices, limit, limit_swap, put, raises_memory
from runtimes.container.nogroup import NoGroup as NoGroup  # noqa: PLC0414 - what group_or_none returns
from runtimes.container.removing import POLL_SECONDS, members_of
from runtimes.container.removing import remove_group as remove_group  # noqa: PLC0414 - for who made the group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set
    from contextlib import ExitStack
    from typing import Final

    from runtimes.container.hierarchy import Layout
    from runtimes.container.resources import Resources
    from runtimes.container.stats import Stats

FREEZE_SECONDS: Final = 10.0
_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_KNOWN: Final = frozenset((*REQUIRED, "blkio", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "io"))


class Group:
    """A container's cgroup in every hierarchy that limits or counts something.

    Attributes:
        name: ``OWNER/NAME`` below ``isomark/``, or an absolute path of its own.
        made_above: Names of the groups above an absolute one that had to be made for it, the innermost first;
            ``remove_empty`` takes them away again.
    """

    __slots__ = ("_directories", "_layout", "_paths", "_unified", "_v2", "made_above", "name")

    made_above: tuple[str, ...]

    def __init__(self, layout: Layout, name: str, resources: Resources) -> None:
        """Create group ``name`` and limit it to ``resources``.

        Raises:
            HostError: a controller that this takes is missing, or the kernel refuses.
        """
        _require_proper(name)
        wanted = _controllers(layout, resources)
        self._start(layout, name)
        self.made_above = _missing_above(layout, name)
        for hierarchy in layout.hierarchies:
            chosen = hierarchy.controllers & wanted
            if chosen or hierarchy is layout.unified:
                self._hold(hierarchy.version, hierarchy.make(name, chosen), chosen)
        self._fill_cpuset()
        limit(self._paths, self._v2, self._unified, resources)
        if resources.devices is not None:
            give_devices(self._paths.get("devices"), self._unified, resources.devices)

    @classmethod
    def existing(cls, layout: Layout, name: str) -> Group:
        """The group ``name`` as another process has made it.

        Raises:
            HostError: there is none.
        """
        _require_proper(name)
        group = cls.__new__(cls)
        group._start(layout, name)
        for hierarchy in layout.hierarchies:
            path = hierarchy.group(name)
            if os.path.isdir(path):
                group._hold(hierarchy.version, path, hierarchy.controllers & _KNOWN)
        if not group._directories:
            raise HostError(f"there is no cgroup {name}")
        return group

    def _start(self, layout: Layout, name: str) -> None:
        self.name = name
        self.made_above = ()
        self._layout = layout
        self._paths: dict[str, str] = {}
        self._v2: set[str] = set()
        self._unified: str | None = None
        self._directories: list[str] = []

    def _hold(self, version: int, path: str, controllers: Set[str]) -> None:
        self._directories.append(path)
        self._paths |= dict.fromkeys(controllers, path)
        if version == 2:
            self._unified = path
            self._v2 |= controllers

    def entrances(self, *, born: bool = True) -> tuple[int | None, list[int]]:
        """Descriptors by which a new process gets into the group; the caller closes them.

        First the directory of the version 2 group if there is one, to be born in (clone3(2), CLONE_INTO_CGROUP); then
        the ``tasks`` files of version 1, for the new process itself to write ``0`` to. Where it cannot be ``born``
        there, a file of the version 2 group is among these: what counts is who opened it (Linux 5.16, "cgroup: Use
        open-time credentials").
        """
        birthplace: int | None = None
        opened: list[int] = []
        try:
            for path in self._directories:
                if path != self._unified:
                    opened.append(os.open(f"{path}/tasks", os.O_WRONLY | os.O_CLOEXEC))
                elif born:
                    birthplace = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                else:
                    opened.append(os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            for fd in (*opened, *(() if birthplace is None else (birthplace,))):
                os.close(fd)
            raise HostError(f"cannot open cgroup {self.name}: {error.strerror}") from error
        return birthplace, opened

    def open_entrances(self, stack: ExitStack) -> tuple[int | None, list[int]]:
        """The same, open as long as ``stack`` is."""
        birthplace, tasks = self.entrances()
        for fd in (*tasks, *(() if birthplace is None else (birthplace,))):
            stack.callback(os.close, fd)
        return birthplace, tasks

    def enter(self, pid: int) -> None:
        """Move a whole process into the group; slow on version 1, where the kernel waits for all CPUs.

        Raises:
            HostError: it is gone, or the kernel refuses.
        """
        for path in self._directories:
            put(f"{path}/cgroup.procs", str(pid))

    def members(self) -> list[int]:
        """The processes in it and in the groups below, as the host numbers them."""
        return members_of([self._unified or self._paths.get("memory") or self._directories[0]])

    def memory_bytes(self) -> int:
        """What the memory controller charges the group now, page cache and kernel memory included."""
        return stats.memory_bytes(self._of("memory"), version_2="memory" in self._v2)

    def oom_kills(self) -> int | None:
        """Processes killed for exceeding the limit; ``None`` where nobody counts (Linux before 4.13, no controller)."""
        if "memory" not in self._paths:
            return None
        return stats.oom_kills(self._of("memory"), version_2="memory" in self._v2)

    def cpu_seconds(self) -> float | None:
        """CPU time used, user and system; ``None`` where nothing counts it."""
        return stats.cpu_seconds(self._paths, self._unified)

    def stats(self) -> Stats:
        """All readings of this moment.

        Raises:
            HostError: the group is gone.
        """
        return stats.collect(self._paths, self._v2, self._unified)

    def update(self, resources: Resources) -> None:
        """Change what ``resources`` names and nothing else.

        Raises:
            HostError: a controller was not asked for when the group was made, or the kernel refuses.
        """
        if resources.devices is not None:
            raise HostError("device rules do not change while a container runs", hint="create it anew")
        wanted = resources.controllers()
        if block := resources.block_controller(self._layout):
            wanted.add(block)
        if missing := sorted(wanted - self._paths.keys()):
            self._add(missing)
        memory = self._paths.get("memory")
        if memory is not None and "memory" not in self._v2 and raises_memory(memory, resources):
            limit_swap(memory, resources, version_2=False)  # never may the limit on both be below that on memory
        limit(self._paths, self._v2, self._unified, resources)

    def freeze(self) -> None:
        """Stop every process until ``thaw``; returns when all are stopped.

        Raises:
            HostError: one is not stopped in time; all go on.
        """
        if self._unified is not None:
            put(f"{self._unified}/cgroup.freeze", "1")
        else:
            self._gather_in_freezer()
        deadline = time.monotonic() + FREEZE_SECONDS
        while not self.frozen():
            if time.monotonic() > deadline:
                self.thaw()
                raise HostError(f"the processes of cgroup {self.name} do not freeze", hint="one waits for a device")
            if self._unified is None:
                put(f"{self._of('freezer')}/freezer.state", "FROZEN")  # what was forked meanwhile, too
            time.sleep(POLL_SECONDS)

    def thaw(self) -> None:
        """Let its processes go on; idempotent."""
        if self._unified is not None:
            put(f"{self._unified}/cgroup.freeze", "0")
        elif "freezer" in self._paths:
            put(f"{self._paths['freezer']}/freezer.state", "THAWED")

    def frozen(self) -> bool:
        """Whether every process is stopped."""
        if self._unified is not None:
            return stats.field(get(f"{self._unified}/cgroup.events"), "frozen") == 1
        return "freezer" in self._paths and get(f"{self._paths['freezer']}/freezer.state").strip() == "FROZEN"

    def remove(self) -> None:
        """Kill what is in it and remove it; idempotent.

        Raises:
            HostError: it does not go away.
        """
        remove_group(self._layout, self.name)

    def _gather_in_freezer(self) -> None:
        """Version 1's freezer is joined only by who is frozen: at a start it would cost more than it is used."""
        if "freezer" not in self._paths:
            self._add(["freezer"])
        freezer = self._paths["freezer"]
        while outside := set(self.members()) - set(members_of([freezer])):
            for pid in outside:
                try:
                    write(f"{freezer}/cgroup.procs", str(pid).encode())
                except ProcessLookupError:
                    continue
                except OSError as error:
                    raise HostError(f"cannot freeze process {pid}: {error.strerror}") from error
        put(f"{freezer}/freezer.state", "FROZEN")

    def _add(self, controllers: Sequence[str]) -> None:
        """Take in version 1 hierarchies that nothing was asked of before, with all processes."""
        self._layout.require(controllers)
        for name in controllers:
            hierarchy = self._layout.holding(name)
            assert hierarchy is not None
            path = hierarchy.make(self.name, frozenset((name,)))
            self._paths[name] = path
            if hierarchy.version == 2:
                self._v2.add(name)
            elif path not in self._directories:
                self._fill_cpuset()
                self._directories.append(path)
                for pid in self.members() if name != "freezer" else ():
                    put(f"{path}/cgroup.procs", str(pid))

    def _fill_cpuset(self) -> None:
        if "cpuset" in self._paths and "cpuset" not in self._v2:
            hierarchy = self._layout.holding("cpuset")
            assert hierarchy is not None
            fill_cpuset(hierarchy.top, self._paths["cpuset"])

    def _of(self, controller: str) -> str:
        if controller not in self._paths:
            raise HostError(f"cgroup {self.name} has no controller {controller}")
        return self._paths[controller]


def group_or_none(layout: Layout, name: str, resources: Resources) -> Group | NoGroup:
    """A group, or where nobody but root may make one, what stands for it.

    Raises:
        HostError: as root, as ``Group``.
    """
    try:
        return Group(layout, name, resources)
    except HostError as error:
        if usernamespace.privileged():
            raise
        remove_group(layout, name)  # it may be made in part
        return NoGroup(name, error)


def existing_or_none(name: str, delegated: str | None) -> Group | NoGroup:
    """The group of a container that another process started; ``delegated`` as of ``detect``.

    Raises:
        HostError: there is none, and it should have one: root started it.
    """
    try:
        return Group.existing(detect(delegated=delegated), name)
    except HostError as error:
        if usernamespace.privileged():
            raise
        return NoGroup(name, error)


def remove(what: Mapping[str, str], root: str | os.PathLike[str] = "/") -> None:
    """Kill everything in isomark's group ``what["name"]`` (``OWNER`` or ``OWNER/NAME``) and remove it; idempotent.

    ``what["delegated"]``, as of ``detect``, is there for an ordinary user's.

    Raises:
        HostError: it does not go away, or is none of isomark's.
    """
    if what["name"].startswith("/"):
        raise HostError(f"{what['name']!r} is no cgroup of isomark")
    _require_proper(what["name"])
    remove_group(detect(root, delegated=what.get("delegated")), what["name"])


def remove_empty(layout: Layout, names: Sequence[str]) -> None:
    """Remove the groups ``names`` (``Group.made_above``) unless somebody uses them by now.

    Raises:
        HostError: for another reason than that.
    """
    for name in names:
        for hierarchy in layout.hierarchies:
            try:
                os.rmdir(hierarchy.group(name))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                    raise HostError(f"cannot remove cgroup {name}: {error.strerror}") from error


def _require_proper(name: str) -> None:
    """Ours are ``OWNER/NAME`` of letters, digits, ``_`` and ``-``; an absolute path may hold more, but no way up."""
    parts = name.split("/")
    if name.startswith("/"):
        proper = all(part not in ("", ".", "..") and "\0" not in part for part in parts[1:])
        proper = proper and parts[1] != OUR_GROUP  # those are ours, and never given by anybody
    else:
        proper = len(parts) <= 2 and all(part and set(part) <= _LETTERS for part in parts)
    if not proper:
        raise HostError(f"{name!r} is no cgroup of isomark", hint="OWNER/NAME, or an absolute path without . and ..")


def _controllers(layout: Layout, wanted: Resources) -> set[str]:
    """Which controllers the group is to have.

    Raises:
        HostError: one that a limit takes is missing.
    """
    asked = wanted.controllers()
    if block := wanted.block_controller(layout):
        asked.add(block)
    layout.require(sorted(asked))
    if layout.unified is None:
        layout.require(["memory"])  # by which members are found and what they use is counted
    found = asked | {"memory"}
    if layout.unified is None:
        found.add("cpuacct")
    else:
        found |= layout.unified.controllers & {*REQUIRED}  # in one directory they cost nothing
    if wanted.devices is not None:
        found.add("devices")
    return found


def _missing_above(layout: Layout, name: str) -> tuple[str, ...]:
    """Which groups above an absolute ``name`` no hierarchy has yet, the innermost first."""
    if not name.startswith("/"):
        return ()
    above = []
    parent = os.path.dirname(name)
    while parent != "/" and not any(os.path.isdir(each.group(parent)) for each in layout.hierarchies):
        above.append(parent)
        parent = os.path.dirname(parent)
    return tuple(above)
