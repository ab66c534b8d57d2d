"""Namespaces, identity maps, clocks, names and sysctls of a configuration as fields of a ``Spec``.

runtime-spec 1.2, config-linux.md.
"""

from __future__ import annotations

from bench.errors import UsageError
from runtimes import libc
from runtimes.ociruntime.node import MAX_INT64, MAX_UINT32, MIN_INT64, Node
from runtimes.sysctls import namespace_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

NAMESPACES: Final[Mapping[str, int]] = {
    "cgroup": libc.CLONE_NEWCGROUP,
    "ipc": libc.CLONE_NEWIPC,
    "mount": libc.CLONE_NEWNS,
    "network": libc.CLONE_NEWNET,
    "pid": libc.CLONE_NEWPID,
    "time": libc.CLONE_NEWTIME,
    "user": libc.CLONE_NEWUSER,
    "uts": libc.CLONE_NEWUTS,
}
"""Name in a configuration -> flag of clone(2)."""

PROC_NAMES: Final[Mapping[str, str]] = {
    "cgroup": "cgroup", "ipc": "ipc", "mount": "mnt", "network": "net", "pid": "pid", "time": "time", "user": "user",
    "uts": "uts",
}  # fmt: skip
"""Name in a configuration -> name in /proc/PID/ns."""


class Isolation:
    """Which namespaces are made, which are joined, and what is set in them."""

    __slots__ = ("domainname", "gid_map", "hostname", "join", "made", "sysctls", "time_offsets", "uid_map")

    def __init__(self) -> None:
        self.made = 0
        self.join: list[list[Any]] = []
        self.uid_map: list[list[int]] | None = None
        self.gid_map: list[list[int]] | None = None
        self.time_offsets: dict[str, int] | None = None
        self.hostname: str | None = None
        self.domainname: str | None = None
        self.sysctls: dict[str, str] = {}

    def joins(self, flag: int) -> bool:
        """Whether the namespace of ``flag`` is an existing one, named by its path."""
        return any(known == flag for known, _ in self.join)

    def separate(self, flag: int) -> bool:
        """Whether the namespace of ``flag`` is another one than the runtime's."""
        return bool(self.made & flag) or self.joins(flag)


def parse(document: Node, linux: Node) -> Isolation:
    """Read what isolates a container.

    Raises:
        UsageError: with the path of what is wrong.
    """
    isolation = Isolation()
    for each in linux.elements("namespaces"):
        _add_namespace(each, isolation)
    _require_mount(linux, isolation)
    _read_maps(linux, isolation)
    _read_clocks(linux, isolation)
    for name in ("hostname", "domainname"):
        if (node := document.get(name)) is not None and node.text():
            if not isolation.separate(libc.CLONE_NEWUTS):
                raise node.fault("needs a uts namespace of its own (linux.namespaces)")
            setattr(isolation, name, node.text())
    if (sysctls := linux.get("sysctl")) is not None:
        for name, each in sysctls.entries().items():
            isolation.sysctls[_sysctl(name, each, isolation)] = each.text()
    return isolation


def _add_namespace(node: Node, isolation: Isolation) -> None:
    kind = node.need("type")
    flag = NAMESPACES[kind.choice(NAMESPACES, f"one of {', '.join(NAMESPACES)}")]
    if isolation.separate(flag):
        raise kind.fault(f"is {kind.text()!r} a second time")
    path = node.get("path")
    if path is None or not path.text():
        isolation.made |= flag
    else:
        isolation.join.append([flag, path.absolute()])


def _require_mount(linux: Node, isolation: Isolation) -> None:
    if not isolation.made & libc.CLONE_NEWNS:
        raise UsageError(
            f"{linux.document}: linux.namespaces must have a new mount namespace",
            hint='add {"type": "mount"}: a root file system cannot be entered in somebody else\'s',
        )


def _read_maps(linux: Node, isolation: Isolation) -> None:
    """The maps of a new user namespace; those beside one that is joined describe it, and are not written."""
    if not isolation.made & libc.CLONE_NEWUSER:
        return
    isolation.uid_map, isolation.gid_map = (
        [
            [each.need(part).integer(0, MAX_UINT32) for part in ("containerID", "hostID", "size")]
            for each in linux.elements(name)
        ]
        for name in ("uidMappings", "gidMappings")
    )
    for name, rows in (("uidMappings", isolation.uid_map), ("gidMappings", isolation.gid_map)):
        if not rows:
            raise UsageError(f"{linux.document}: linux.{name} is missing, and a user namespace needs it")


def _read_clocks(linux: Node, isolation: Isolation) -> None:
    offsets = linux.get("timeOffsets")
    if offsets is None or not offsets.entries():
        return
    if not isolation.made & libc.CLONE_NEWTIME:
        raise offsets.fault("needs a new time namespace (linux.namespaces)")
    isolation.time_offsets = {}
    for name, each in offsets.entries().items():
        if name not in ("monotonic", "boottime"):
            raise each.fault("is no clock with an offset: monotonic and boottime are")
        if each.integer_of("nanosecs", 0, 999_999_999):
            raise each.need("nanosecs").fault("must be 0: only whole seconds are supported")
        isolation.time_offsets[name] = each.integer_of("secs", MIN_INT64, MAX_INT64) or 0


def _sysctl(name: str, node: Node, isolation: Isolation) -> str:
    """``name``, if that setting belongs to a namespace that is the container's own; any other would be the host's."""
    try:
        kind, flag = namespace_of(name)
    except ValueError as error:
        raise node.fault(str(error)) from error
    if not isolation.separate(flag):
        raise node.fault(f"would change the host: it needs a namespace of type {kind!r}")
    return name
