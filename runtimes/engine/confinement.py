"""The cgroup of one life of a container, or what tells who belongs to it where there can be none."""

from __future__ import annotations

import _signal
import os

from runtimes.container import cgroup
from runtimes.container.cgroup import NoGroup, group_or_none
from runtimes.container.hierarchy import detect
from runtimes.container.resources import Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtimes.container.cgroup import Group
    from runtimes.engine.container import Container
    from runtimes.engine.journal import Entry, Journal
    from runtimes.engine.means import Means
    from runtimes.members import Namespace

_KILL_SECONDS = 10.0


class Confinement:
    """Made for one start; ``remove`` undoes whatever was done, however far ``make`` came."""

    def __init__(self, container: Container, journal: Journal) -> None:
        self._container = container
        self._journal = journal
        self._group: Group | NoGroup | None = None
        self._entry: Entry | None = None
        self._mounts: Namespace | None = None

    def make(self, resources: Resources, means: Means) -> None:
        """Make the cgroup, limited to ``resources``.

        Raises:
            HostError: there can be none, or not with these limits.
        """
        layout = detect()
        self._entry = self._journal.own("cgroup", name=self._container.id, **means.delegation(layout))
        self._group = group_or_none(layout, self._container.id, resources)
        means.check_limits(layout, self._group, resources)

    def entrances(self, held: list[int], *, born: bool) -> tuple[int | None, list[int]]:
        """As of ``Group``; ``held`` gets them all, to be closed when the container is in."""
        assert self._group is not None
        birthplace, entrances = self._group.entrances(born=born)
        held += [*entrances, *([] if birthplace is None else [birthplace])]
        return birthplace, entrances

    def watch(self, pid: int) -> None:
        """Remember who belongs to process ``pid``, the container's first: where it shares its PID namespace others may
        outlive it. To be called when it is born, for it may be gone soon, and when its command runs, for one that joins
        others cannot be looked at before.
        """  # noqa: D205
        if self._mounts is None and isinstance(self._group, NoGroup) and not self._dies_with_first():
            from runtimes.members import Namespace

            try:
                self._mounts = Namespace(pid, "mnt")  # its own, which tells who belongs to it as well
            except (FileNotFoundError, PermissionError):
                return

    def oom_killed(self) -> bool:
        """Whether a process of it was killed for want of memory."""
        return self._group is not None and bool(self._group.oom_kills())

    def freeze(self, *, frozen: bool) -> None:
        """Freeze or thaw all its processes.

        Raises:
            HostError: it has no cgroup, or does not freeze.
        """
        assert self._group is not None
        if frozen:
            self._group.freeze()
        else:
            self._group.thaw()

    def kill_rest(self) -> None:
        """Kill what survived the first process, which happens only without a PID namespace of its own."""
        if self._dies_with_first() or self._group is None:
            return
        if self._mounts is not None:
            self._mounts.kill(_KILL_SECONDS)
        if isinstance(self._group, NoGroup):
            return
        for pid in self._group.members():
            try:
                os.kill(pid, _signal.SIGKILL)
            except ProcessLookupError:
                continue

    def remove(self) -> None:
        """Kill what is in it and remove it; idempotent.

        Raises:
            HostError: it does not go away. Its journal entry stays then.
        """
        if self._mounts is not None:
            self._mounts.kill(_KILL_SECONDS)
            self._mounts.close()
            self._mounts = None
        if self._group is not None:
            self._group.remove()
            self._group = None
        elif self._entry is not None:  # it may have been made in part
            cgroup.remove(self._entry.what)
        if self._entry is not None:
            self._journal.gone(self._entry)
            self._entry = None

    def _dies_with_first(self) -> bool:
        return bool(self._container.config["namespaces"]["pid"] == "private")


def resources_of(wanted: Mapping[str, Any], devices: Any) -> Resources:  # noqa: ANN401 - as Resources has it
    """What a config's ``resources`` ask for, and which ``devices`` are allowed."""
    return Resources(
        cpus=wanted["cpus"],
        cpu_shares=wanted["cpu_shares"],
        cpuset_cpus=wanted["cpuset_cpus"],
        cpuset_mems=wanted["cpuset_mems"],
        memory=wanted["memory_bytes"],
        memory_reservation=wanted["memory_reservation_bytes"],
        memory_swap=wanted["memory_swap_bytes"],
        pids=wanted["pids"],
        devices=devices,
    )
