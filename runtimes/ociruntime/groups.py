"""The cgroup of a container at the path that its caller names, and what had to be made above it.

On version 1 the container has a group in every hierarchy, unlike under ``isomark container``: engines read their
figures from where the first process is, whatever was limited.
"""

from __future__ import annotations

import os

from bench.errors import HostError, UsageError
from runtimes.container.cgroup import Group, NoGroup, group_or_none
from runtimes.container.hierarchy import detect, read
from runtimes.container.removing import members_of, remove_group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from runtimes.container.hierarchy import Hierarchy, Layout
    from runtimes.container.resources import Resources

OWN: Final = "/isomark-oci"
"""Where containers go whose caller names no absolute path."""


def name_of(cgroups_path: str | None, container: str) -> str:
    """The group's name: an absolute path from the top of each hierarchy.

    Raises:
        UsageError: systemd's form, or no group of its own.
    """
    if cgroups_path is None:
        return f"{OWN}/{container}"
    if "/" not in cgroups_path and cgroups_path.count(":") == 2:
        raise UsageError(
            f"linux.cgroupsPath {cgroups_path!a} is for systemd, which is not supported",
            hint="podman: --cgroup-manager=cgroupfs; containerd: SystemdCgroup = false",
        )
    start = "/" if cgroups_path.startswith("/") else f"{OWN}/"
    parts = [part for part in cgroups_path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise UsageError(f"linux.cgroupsPath {cgroups_path!a} must name a group below the top, without ..")
    return start + "/".join(parts)


def missing_above(layout: Layout, name: str) -> list[str]:
    """The directories above the group that are not there yet, the innermost first."""
    found = []
    for hierarchy in layout.hierarchies:
        parent = os.path.dirname(name)
        while parent != "/" and not os.path.isdir(hierarchy.group(parent)):
            found.append(hierarchy.group(parent))
            parent = os.path.dirname(parent)
    return found


def require_empty(layout: Layout, name: str) -> None:
    """See that a group that is there already has nobody in it: its processes would be limited, and killed, with ours.

    Raises:
        UsageError: somebody is in it.
    """
    there = [path for each in layout.hierarchies if os.path.isdir(path := each.group(name))]
    if there and (members := members_of(there)):
        raise UsageError(
            f"cgroup {name} is in use by the processes {', '.join(map(str, members[:5]))}",
            hint="linux.cgroupsPath must name a group that nobody is in",
        )


def make(layout: Layout, name: str, resources: Resources) -> Group | NoGroup:
    """Make and limit the group.

    Raises:
        HostError: the kernel refuses.
    """
    group = group_or_none(layout, name, resources)
    if isinstance(group, NoGroup):
        return group
    bare = [each for each in layout.hierarchies if each.version == 1 and not os.path.isdir(each.group(name))]
    for hierarchy in bare:
        path = hierarchy.make(name, frozenset())
        if "cpuset" in hierarchy.controllers:
            _inherit_cpus(hierarchy, path)
    return Group.existing(layout, name) if bare else group


def _inherit_cpus(hierarchy: Hierarchy, path: str) -> None:
    """Version 1 gives a new group no CPU and no memory node: take those above, from the top down."""
    above = hierarchy.top
    for part in path.removeprefix(hierarchy.top + "/").split("/"):
        here = f"{above}/{part}"
        for file in ("cpuset.cpus", "cpuset.mems"):
            try:
                if not read(f"{here}/{file}").strip():
                    with open(f"{here}/{file}", "wb", buffering=0) as control:
                        control.write(read(f"{above}/{file}").strip())
            except OSError as error:
                raise HostError(f"cannot set {here}/{file}: {error.strerror}") from error
        above = here


def find(state: dict[str, Any]) -> Group:
    """The group of a container.

    Raises:
        HostError: it has none.
    """
    if state["cgroup"] is None:
        raise HostError("the container has no cgroup", hint="rootless containers need a delegated one")
    return Group.existing(detect(), state["cgroup"])


def remove(state: dict[str, Any]) -> None:
    """Kill what is in the container's group, and remove it and what was made for it; idempotent.

    Raises:
        HostError: it does not go away.
    """
    if state["cgroup"] is not None:
        remove_group(detect(), state["cgroup"])
        _remove_unused(state["made_above"])


def _remove_unused(directories: Sequence[str]) -> None:
    for directory in directories:
        try:
            os.rmdir(directory)
        except OSError:  # in use by another container, or gone with one
            continue


def shown(layout: Layout, name: str, operation: Sequence[Any], *, own: bool, version_2_only: bool) -> list[Any]:
    """Complete a mount of type cgroup with what this host has.

    Args:
        layout: This host's.
        name: The container's group.
        operation: ``["oci-cgroup", path, where, flags, propagation]``.
        own: Whether the container has a cgroup namespace of its own.
        version_2_only: Whether the configuration says ``cgroup2``.

    Raises:
        HostError: nothing of that kind is mounted on the host.
    """
    _, path, where, flags, propagation = operation
    first = [each for each in layout.hierarchies if each.version == 1 and os.path.isdir(each.group(name))]
    if first and not version_2_only:
        rows = [_row(each, each.group(name)) for each in first]
        return ["oci-cgroup1", path, where, flags, propagation, rows, own]
    unified = next((each for each in layout.hierarchies if each.version == 2), None)
    if unified is None:
        raise HostError(f"cannot mount cgroups at {path}: the host has none")
    group = unified.group(name)
    return ["oci-cgroup2", path, where, flags, propagation, group if os.path.isdir(group) else unified.top, own]


def _row(hierarchy: Hierarchy, group: str) -> list[Any]:
    directory = os.path.basename(hierarchy.top)
    controllers = sorted(hierarchy.controllers)
    links = [name for name in controllers if name != directory] if len(controllers) > 1 else []
    return [directory, ",".join(controllers), group, links]
