"""The driver ``container``: the image's tree below an overlay, in namespaces and cgroups of its own."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from bench.channel import Channel
from bench.driver import Lab, Launch
from bench.errors import HostError, InstanceError
from bench.journal import Entry
from bench.memory import read_memory
from bench.model import Kind, Limits, MemoryReading
from bench.network import Lease
from bench.units import format_bytes
from runtimes import libc
from runtimes.container import cgroup
from runtimes.container.cgroup import Group
from runtimes.container.hierarchy import Layout, detect
from runtimes.container.root import mounts
from runtimes.driver import Prepared, SandboxDriver
from runtimes.inside import Network, Spec
from runtimes.instance import ProcessInstance
from runtimes.spawner import Child, Ended

NAMESPACES: Final = (
    libc.CLONE_NEWNS
    | libc.CLONE_NEWPID
    | libc.CLONE_NEWNET
    | libc.CLONE_NEWIPC
    | libc.CLONE_NEWUTS
    | libc.CLONE_NEWCGROUP
)
SECURITY: Final = (
    "namespaces, cgroups, no_new_privs, masked and read-only paths; no seccomp filter, full capability set, "
    "no device rules, no user namespace"
)
PARITY: Final = (
    "Its CPU limit is a quota on all CPUs of the host",
    "Less strict than Docker: no seccomp filter, no dropped capabilities",
    "The limit on disk space is not enforced",
    "container: /sys/fs/cgroup is empty inside, so a payload cannot read its limits there",
)


class ContainerDriver(SandboxDriver):
    """Starts containers; needs root, cgroups and overlayfs."""

    name = "container"
    kind: Kind = "container"
    form: ClassVar[str] = "unpacked tree, overlayfs lower layer"
    directories: ClassVar[Mapping[str, int]] = {"upper": 0o755, "work": 0o755, "root": 0o755}

    def __init__(self, lab: Lab, *, trace: bool = False) -> None:
        super().__init__(lab, trace=trace)
        self._layout: Layout | None = None
        self._groups: Entry | None = None

    def describe(self) -> Mapping[str, str]:
        """Engine, isolation, security profile, limits, and what differs from other drivers."""
        return {
            "engine": "isomark built-in",
            "namespaces": "mount, pid, net, ipc, uts, cgroup",
            "security": SECURITY,
            "cgroups": detect().version,
            "limits": "cpus by quota, memory without swap, pids",
            "root file system": self.form,
            "network": "veth pair on the lab bridge" if self._lab.network else "loopback only",
            "parity": "\n".join(PARITY),
        }

    def close(self) -> None:
        """End the helper and every container, and remove their cgroups; idempotent."""
        super().close()
        if self._groups is not None:
            cgroup.remove(self._groups.what)
            self._lab.journal.gone(self._groups)
            self._groups = None

    def _open(self) -> None:
        super()._open()
        if self._layout is None:
            layout = detect()
            layout.require()
            self._layout = layout
            self._groups = self._lab.journal.own("cgroup", name=self._lab.journal.owner.id)

    def _spec(self, tree: Path, launch: Launch) -> Spec:
        own = self._lab.scratch / launch.name
        return {
            "command": list(launch.command),
            "environment": self._environment(launch),
            "namespaces": NAMESPACES,
            "root": ["overlay", str(tree), *(str(own / part) for part in self.directories)],
            "mounts": mounts(launch.limits.memory_bytes),
            "hostname": launch.name,
            "network": _network(launch.lease),
            "cpus": None,
            "map_user": None,
            "born_in_cgroup": (self._layout or detect()).uses_v2,
            "wait": launch.lease is not None,
            "no_new_privileges": True,
            "trace": self._trace,
        }

    def _prepare(self, launch: Launch, undo: ExitStack, brief: ExitStack) -> Prepared:
        assert self._layout is not None
        name = f"{self._lab.journal.owner.id}/{launch.name}"
        undo.callback(cgroup.remove_group, self._layout, name)
        group = Group(self._layout, name, launch.limits)
        birthplace, entrances = group.open_entrances(brief)
        return Prepared(partial(self._adopt, group, launch), birthplace, entrances)

    def _adopt(self, group: Group, launch: Launch, child: Child, channel: Channel, undo: ExitStack) -> ProcessInstance:
        child.await_pid()
        if launch.lease is not None:
            self._connect(launch.lease, child)
            child.release()
        return ContainerInstance(channel, child, undo, group, launch)

    def _connect(self, lease: Lease, child: Child) -> None:
        if self._lab.network is None:
            raise InstanceError("there is no lab network to connect to", hint="the lab network needs root")
        from pyroute2.netlink.exceptions import NetlinkError  # 0.3 s to import, and the network has done it already

        try:
            with open(f"/proc/{child.pid}/ns/net", "rb") as namespace:
                self._lab.network.connect(lease, namespace.fileno())
        except (NetlinkError, OSError) as error:
            raise InstanceError(f"cannot connect {lease.address} to the lab network: {error}") from error


class ContainerInstance(ProcessInstance):
    """A container: what is in its cgroup."""

    def __init__(self, channel: Channel, child: Child, undo: ExitStack, group: Group, launch: Launch) -> None:
        super().__init__(channel, child, undo)
        self._group = group
        self._limits: Limits = launch.limits
        self._lease = launch.lease

    def memory(self) -> MemoryReading:
        """Read what its processes cost, and what its memory cgroup is charged.

        Raises:
            InstanceError: it is gone.
        """
        try:
            return read_memory(self._group.members(), self._group.memory_bytes())
        except HostError as error:
            raise InstanceError("the instance is gone", tail=self.tail) from error

    def cpu_seconds(self) -> float | None:
        """CPU time it has used so far; ``None`` where no controller counts it."""
        return self._group.cpu_seconds()

    def address(self) -> str | None:
        """Its address on the lab network."""
        return self._lease.address if self._lease is not None else None

    def _kill_members(self) -> None:
        self._group.remove()

    def _tell(self, ended: Ended) -> str:
        if not self._group.oom_kills():
            return str(ended)
        limit = f"limit {format_bytes(self._limits.memory_bytes)}"
        return f"killed: out of memory, {limit}" if ended.status == -9 else f"{ended}; out of memory inside, {limit}"


def _network(lease: Lease | None) -> Network | None:
    if lease is None:
        return None
    network = ipaddress.IPv4Network(f"{lease.address}/{lease.prefix_length}", strict=False)
    return {"address": lease.address, "netmask": str(network.netmask), "gateway": lease.gateway}
