"""Where this host's cgroup controllers are: version 1, version 2 or both (cgroups(7)). Light: every start asks.

A group's name is ``OWNER/NAME``, below ``isomark/``, or with a slash in front a path of its own (what OCI calls
cgroupsPath). Both are looked for at the top of each hierarchy, on version 2 without root at the process's own,
delegated group.
"""

from __future__ import annotations

import errno
import os

from bench.errors import HostError
from runtimes import usernamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Set
    from typing import Final, Literal

OUR_GROUP: Final = "isomark"
HOST_GROUP: Final = "isomark-host"
"""Takes in the processes of a delegated group, which may not have both processes and controlled children."""
REQUIRED: Final = ("cpu", "memory", "pids")

_MAKE_ATTEMPTS: Final = 100
_NO_CONTROLLERS: Final = frozenset(("rw", "ro", "xattr", "noprefix"))
_DELEGATE: Final = "run as root, or in a group of your own: systemd-run --user --scope -p Delegate=yes isomark …"


class Hierarchy:
    """One mounted tree of cgroups.

    Attributes:
        version: 1 or 2.
        controllers: Those bound to it.
        top: The directory that isomark's own group goes in.
    """

    __slots__ = ("controllers", "top", "version")

    def __init__(self, version: Literal[1, 2], controllers: Set[str], top: str) -> None:
        self.version = version
        self.controllers = controllers
        self.top = top

    def group(self, name: str) -> str:
        """The directory of the group ``name``."""
        return f"{self.top}{name}" if name.startswith("/") else f"{self.top}/{OUR_GROUP}/{name}"

    def make(self, name: str, wanted: Set[str]) -> str:
        """Create group ``name`` with the controllers ``wanted`` and return its directory.

        Raises:
            HostError: the kernel refuses.
        """
        path = self.group(name)
        try:
            _make(path)
            if self.version == 2 and wanted and not wanted <= _words(f"{path}/cgroup.controllers"):
                self._enable_above(path, wanted)
        except OSError as error:
            raise HostError(f"cannot make cgroup {path}: {error.strerror}", hint=_DELEGATE) from error
        return path

    def _enable_above(self, path: str, wanted: Set[str]) -> None:
        directory = self.top
        for part in path[len(self.top) + 1 :].split("/"):
            _enable(directory, wanted)
            directory = f"{directory}/{part}"


class Layout:
    """Every hierarchy of the host.

    Attributes:
        hierarchies: In the order of /proc/self/mountinfo.
        unified: The version 2 one if a group can be made there: without any controller it still freezes, kills, counts
            CPU time and takes in a process as it is born (Linux 5.14).
    """

    __slots__ = ("hierarchies", "unified")

    def __init__(self, hierarchies: tuple[Hierarchy, ...]) -> None:
        self.hierarchies = hierarchies
        self.unified = next(
            (each for each in hierarchies if each.version == 2 and (each.controllers or os.access(each.top, os.W_OK))),
            None,
        )

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
        """Whether a version 2 group takes part, to be born in."""
        return self.unified is not None

    def require(self, controllers: Iterable[str] = REQUIRED) -> None:
        """Check that what ``controllers`` limit can be limited.

        Raises:
            HostError: one is missing.
        """
        missing = [name for name in controllers if self.holding(name) is None]
        if missing and self.version == "none":
            raise HostError("no cgroups are mounted", hint="mount -t cgroup2 none /sys/fs/cgroup")
        if missing:
            raise HostError(
                f"the cgroup controllers {', '.join(missing)} are missing",
                hint="start the kernel with cgroup_enable=memory, or have the controllers delegated (Delegate=yes)",
            )


def detect(
    root: str | os.PathLike[str] = "/", *, privileged: bool | None = None, delegated: str | None = None
) -> Layout:
    """Read the layout of the host whose file system is at ``root``.

    ``privileged`` says whether the top of version 2 is ours to use; by default root's is. ``delegated`` is the
    directory of version 2 that is, where another process found it out.

    Raises:
        HostError: /proc cannot be read.
    """
    base = os.fspath(root).rstrip("/")
    privileged = usernamespace.privileged() if privileged is None else privileged
    try:
        mountinfo = os.fsdecode(read(f"{base}/proc/self/mountinfo"))
        own = None if privileged else _own_group(os.fsdecode(read(f"{base}/proc/self/cgroup")))
    except OSError as error:
        raise HostError(f"cannot read the cgroup layout: {error}", hint="mount -t proc proc /proc") from error
    found: list[Hierarchy] = []
    for line in mountinfo.split("\n"):
        if " - cgroup" in line:
            hierarchy = _hierarchy(line, base, own, delegated)
            if hierarchy is not None and not any(_same(hierarchy, other) for other in found):
                found.append(hierarchy)
    return Layout(tuple(found))


def read(path: str) -> bytes:
    """All of a file that /proc or a cgroup shows.

    Raises:
        OSError: as open(2) and read(2).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [part := os.read(fd, 1 << 16)]
        while part:
            parts.append(part := os.read(fd, 1 << 16))
    finally:
        os.close(fd)
    return b"".join(parts)


def _hierarchy(line: str, base: str, own: str | None, delegated: str | None) -> Hierarchy | None:
    """The cgroup hierarchy that a line of mountinfo (proc(5)) describes, if it does."""
    before, _, after = line.partition(" - ")
    mount_root, mount_point = before.split(" ")[3:5]
    fstype, _, options = after.split(" ", 2)
    directory = f"{base}/{_unescape(mount_point).lstrip('/')}"
    if fstype == "cgroup":
        known = frozenset(name for name in options.split(",") if "=" not in name) - _NO_CONTROLLERS
        return Hierarchy(1, known, directory) if known else None
    if fstype != "cgroup2" or not os.path.isdir(directory):
        return None
    if delegated is not None:
        directory = delegated
    elif own is not None:
        directory = os.path.normpath(f"{directory}/{os.path.relpath(own, mount_root)}")
    return Hierarchy(2, _words(f"{directory}/cgroup.controllers"), directory)


def _unescape(path: str) -> str:
    r"""Mountinfo writes a space as ``\040``."""
    first, *rest = path.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def _same(one: Hierarchy, other: Hierarchy) -> bool:
    return one.version == other.version and (one.version == 2 or bool(one.controllers & other.controllers))


def _own_group(text: str) -> str:
    """The version 2 group that this process has; ``/`` where that version is not mounted (cgroups(7))."""
    own = next((line[3:] for line in text.split("\n") if line.startswith("0::")), "/")
    return own.removesuffix(f"/{HOST_GROUP}") or "/"


def _make(path: str) -> None:
    """Make a group and those above it, which another process may remove as unused at the same time."""
    for attempt in range(_MAKE_ATTEMPTS, 0, -1):
        try:
            os.mkdir(path, 0o755)  # whatever the umask: what others may write looks delegated to them
        except FileExistsError:
            return
        except FileNotFoundError:
            if attempt == 1 or path.count("/") < 2:
                raise
            _make(os.path.dirname(path))
        else:
            return


def _words(path: str) -> frozenset[str]:
    try:
        return frozenset(read(path).decode().split())
    except FileNotFoundError:
        return frozenset()


def _enable(directory: str, wanted: Set[str]) -> None:
    """Let the children of ``directory`` have the controllers ``wanted``.

    The kernel refuses with EBUSY while a group other than the root has processes of its own; they are moved to a
    leaf beside ours, which stays as long as they live (kernel, Documentation/admin-guide/cgroup-v2.rst, "No
    Internal Process Constraint").
    """
    control = f"{directory}/cgroup.subtree_control"
    missing = sorted(wanted - _words(control))
    if not missing:
        return
    request = " ".join(f"+{name}" for name in missing).encode()
    try:
        write(control, request)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _vacate(directory)
        write(control, request)


def _vacate(directory: str) -> None:
    leaf = f"{directory}/{HOST_GROUP}"
    _make(leaf)
    for pid in read(f"{directory}/cgroup.procs").split():
        try:
            write(f"{leaf}/cgroup.procs", pid)
        except ProcessLookupError:
            continue


def write(path: str, content: bytes) -> None:
    """Write to a control file in one call, as the kernel wants it.

    Raises:
        OSError: as open(2) and write(2).
    """
    # only on a test's host of files is anything created or truncated
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
