"""Where this host's cgroup controllers are: version 1, version 2 or both (cgroups(7)).

isomark's groups are ``isomark/OWNER/NAME``: on version 1 at the top of each hierarchy, on version 2 at
its top for root and below the process's own, delegated group for others.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.errors import HostError

OUR_GROUP: Final = "isomark"
HOST_GROUP: Final = "isomark-host"
"""Takes in the processes of a delegated group, which may not have both processes and controlled children."""
REQUIRED: Final = ("cpu", "memory", "pids")


@dataclass(frozen=True)
class Hierarchy:
    """One mounted tree of cgroups. ``top`` is the directory that isomark's own group goes in."""

    version: Literal[1, 2]
    controllers: frozenset[str]
    top: Path

    def group(self, name: str) -> Path:
        """The directory of isomark's group ``name``."""
        return self.top / OUR_GROUP / name

    def make(self, name: str, wanted: frozenset[str]) -> Path:
        """Create group ``name`` with the controllers ``wanted`` and return its directory.

        Raises:
            HostError: the kernel refuses.
        """
        path = self.group(name)
        try:
            if self.version == 1:
                os.makedirs(path, exist_ok=True)
                return path
            directory = self.top
            for part in path.relative_to(self.top).parts:
                _enable(directory, wanted)
                directory /= part
                directory.mkdir(exist_ok=True)
        except OSError as error:
            raise HostError(
                f"cannot make cgroup {path}: {error.strerror}",
                hint="run as root, or in a group of your own: systemd-run --user --scope -p Delegate=yes isomark …",
            ) from error
        return path


@dataclass(frozen=True)
class Layout:
    """Every hierarchy of the host."""

    hierarchies: tuple[Hierarchy, ...]

    @property
    def version(self) -> Literal["none", "v1", "v2", "hybrid"]:
        """What kind of host this is; hybrid has both, whoever holds the controllers."""
        versions = {hierarchy.version for hierarchy in self.hierarchies}
        return "hybrid" if versions == {1, 2} else "v1" if versions == {1} else "v2" if versions == {2} else "none"

    def holding(self, controller: str) -> Hierarchy | None:
        """The hierarchy that ``controller`` is bound to; it can be only one."""
        return next((each for each in self.hierarchies if controller in each.controllers), None)

    @property
    def uses_v2(self) -> bool:
        """Whether a version 2 group takes part in limiting a container."""
        return any(held is not None and held.version == 2 for held in map(self.holding, REQUIRED))

    def require(self) -> None:
        """Check that every limit can be set.

        Raises:
            HostError: a controller is missing.
        """
        missing = [name for name in REQUIRED if self.holding(name) is None]
        if self.version == "none":
            raise HostError("no cgroups are mounted", hint="mount -t cgroup2 none /sys/fs/cgroup")
        if missing:
            raise HostError(
                f"the cgroup controllers {', '.join(missing)} are missing",
                hint="start the kernel with cgroup_enable=memory, or have the controllers delegated (Delegate=yes)",
            )


def detect(root: Path = Path("/"), *, privileged: bool | None = None) -> Layout:
    """Read the layout of the host whose file system is at ``root``.

    ``privileged`` says whether the top of version 2 is ours to use; by default root's is.

    Raises:
        HostError: /proc cannot be read.
    """
    privileged = os.geteuid() == 0 if privileged is None else privileged
    try:
        mountinfo = (root / "proc/self/mountinfo").read_text(errors="surrogateescape")
        own = _own_group((root / "proc/self/cgroup").read_text(errors="surrogateescape"))
    except OSError as error:
        raise HostError(f"cannot read the cgroup layout: {error}", hint="mount -t proc proc /proc") from error
    found: list[Hierarchy] = []
    for line in mountinfo.splitlines():
        hierarchy = _hierarchy(line, root, None if privileged else own)
        if hierarchy is not None and not any(_same(hierarchy, other) for other in found):
            found.append(hierarchy)
    return Layout(tuple(found))


def _hierarchy(line: str, root: Path, own: str | None) -> Hierarchy | None:
    """The cgroup hierarchy that a line of mountinfo (proc(5)) describes, if it does."""
    before, _, after = line.partition(" - ")
    mount_root, mount_point = before.split(" ")[3:5]
    fstype, _, options = after.split(" ", 2)
    directory = root / mount_point.encode().decode("unicode_escape").lstrip("/")
    if fstype == "cgroup":
        known = {name for name in options.split(",") if "=" not in name} - {"rw", "ro", "xattr", "noprefix"}
        return Hierarchy(1, frozenset(known), directory) if known else None
    if fstype != "cgroup2" or not directory.is_dir():
        return None
    if own is not None:
        directory /= os.path.relpath(own, mount_root)
    controllers = directory / "cgroup.controllers"
    return Hierarchy(2, frozenset(controllers.read_text().split()) if controllers.exists() else frozenset(), directory)


def _same(one: Hierarchy, other: Hierarchy) -> bool:
    return one.version == other.version and (one.version == 2 or bool(one.controllers & other.controllers))


def _own_group(text: str) -> str:
    """The version 2 group of this process; ``/`` where that version is not mounted (cgroups(7))."""
    return next((line[3:] for line in text.splitlines() if line.startswith("0::")), "/")


def _enable(directory: Path, wanted: frozenset[str]) -> None:
    """Let the children of ``directory`` have the controllers ``wanted``.

    The kernel refuses with EBUSY while a group other than the root has processes of its own; they are moved to a
    leaf beside ours, which stays as long as they live (kernel, Documentation/admin-guide/cgroup-v2.rst, "No
    Internal Process Constraint").
    """
    control = directory / "cgroup.subtree_control"
    enabled = set(control.read_text().split()) if control.exists() else set()
    if missing := sorted(wanted - enabled):
        request = " ".join(f"+{name}" for name in missing)
        try:
            control.write_text(request)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            _vacate(directory)
            control.write_text(request)


def _vacate(directory: Path) -> None:
    leaf = directory / HOST_GROUP
    leaf.mkdir(exist_ok=True)
    for pid in (directory / "cgroup.procs").read_text().split():
        try:
            (leaf / "cgroup.procs").write_text(pid)
        except ProcessLookupError:
            continue
