"""The driver ``container``: the image's tree below an overlay, in namespaces and cgroups of its own."""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from bench.abilities import Verb
from bench.channel import Channel
from bench.driver import Lab, Launch
from bench.errors import HostError, InstanceError
from bench.journal import Entry
from bench.memory import read_memory
from bench.model import Kind, Limits, MemoryReading
from bench.network import Lease
from bench.units import format_bytes
from runtimes import libc
from runtimes.birth import plain
from runtimes.container import cgroup
from runtimes.container.cgroup import Group
from runtimes.container.hierarchy import Layout, detect
from runtimes.container.removing import remove_group
from runtimes.container.resources import Resources
from runtimes.container.root import mounts
from runtimes.driver import Prepared, SandboxDriver
from runtimes.instance import ProcessInstance
from runtimes.security import levels
from runtimes.security.levels import Security
from runtimes.spawner import Child, Ended
from runtimes.spec import Network, Spec

NAMESPACES: Final = (
    libc.CLONE_NEWNS
    | libc.CLONE_NEWPID
    | libc.CLONE_NEWNET
    | libc.CLONE_NEWIPC
    | libc.CLONE_NEWUTS
    | libc.CLONE_NEWCGROUP
)
PARITY: Final = (
    "Its CPU limit is a quota on all CPUs of the host",
    "The limit on disk space is not enforced",
    "container: /sys/fs/cgroup is empty inside, so a payload cannot read its limits there",
)
LACKS: Final[Mapping[Verb, str]] = {
    "save": "writing its processes' memory to a file would need CRIU",
    "snapshot": "it has no disk of its own; its files are the host's",
    "reboot": "it has no machine to reset; starting another container is a start",
}


class ContainerDriver(SandboxDriver):
    """Starts containers; needs root, cgroups and overlayfs.

    ``security`` is a level of ``runtimes.security.levels``. Each but Docker's is a driver of its own,
    ``container-LEVEL``, so that one suite compares them and the cost of security is a factor.
    """

    name = "container"
    kind: Kind = "container"
    form: ClassVar[str] = "unpacked tree, overlayfs lower layer"
    directories: ClassVar[Mapping[str, int]] = {"upper": 0o755, "work": 0o755, "root": 0o755, "scratch": 0o1777}

    def __init__(self, lab: Lab, *, security: str = "default") -> None:
        super().__init__(lab)
        self._level = security
        if security != "default":
            self.name = f"container-{security}"
        self._security: Security | None = None
        self._layout: Layout | None = None
        self._groups: Entry | None = None

    def describe(self) -> Mapping[str, str]:
        """Engine, isolation, security profile, limits, and what differs from other drivers."""
        return {
            "engine": "isomark built-in",
            "namespaces": "mount, pid, net, ipc, uts, cgroup",
            "security": f"{levels.describe(self._level)}, no user namespace",
            "cgroups": detect().version,
            "limits": "cpus by quota, memory without swap, pids",
            "root file system": self.form,
            "network": "veth pair on the lab bridge" if self._lab.network else "loopback only",
            "parity": "\n".join([*PARITY, *_weaker(self._level)]),
        }

    def close(self) -> None:
        """End the helper and every container, and remove their cgroups; idempotent."""
        super().close()
        if self._groups is not None:
            cgroup.remove(self._groups.what)
            self._lab.journal.gone(self._groups)
            self._groups = None

    def _open(self) -> None:
        self._secure()
        super()._open()
        if self._layout is None:
            layout = detect()
            layout.require()
            self._layout = layout
            self._groups = self._lab.journal.own("cgroup", name=self._lab.journal.owner.id)

    def _spec(self, tree: Path, launch: Launch) -> Spec:
        own = self._lab.scratch / launch.name
        security = self._secure()
        return {
            **plain(),
            "command": list(launch.command),
            "environment": self._environment(launch),
            "namespaces": NAMESPACES,
            "root": ["overlay", [str(tree)], *(str(own / part) for part in ("upper", "work", "root"))],
            "root_readonly": security.read_only_root,
            "mounts": mounts(launch.limits.memory_bytes, security, str(own / "scratch")),
            "hostname": launch.name,
            "network": _network(launch.lease),
            "born_in_cgroup": (self._layout or detect()).uses_v2,
            "wait": launch.lease is not None,
            "capabilities": security.capabilities,
            "seccomp": security.seccomp,
            "apparmor": security.apparmor,
            "no_new_privileges": security.no_new_privileges,
            "tie": True,
            "trace": True,
        }

    def _birthplace(self, launch: Launch, undo: ExitStack, brief: ExitStack) -> int | None:
        layout = self._layout
        assert layout is not None
        undo.callback(remove_group, layout, self._group_name(launch))
        if layout.unified is None:
            return None
        path = layout.unified.make(self._group_name(launch), frozenset())  # its limits come with the rest of the group
        birthplace = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        brief.callback(os.close, birthplace)
        return birthplace

    def _prepare(self, launch: Launch, _undo: ExitStack, brief: ExitStack) -> Prepared:
        assert self._layout is not None
        limits = launch.limits
        wanted = Resources(
            cpus=limits.cpus,
            memory=limits.memory_bytes,
            memory_swap=limits.memory_bytes,  # none: it would turn a limit on memory into one on speed
            pids=limits.pids,
            devices=self._secure().devices,
        )
        group = Group(self._layout, self._group_name(launch), wanted)
        _, entrances = group.open_entrances(brief)
        return Prepared(partial(self._adopt, group, launch), entrances)

    def _group_name(self, launch: Launch) -> str:
        return f"{self._lab.journal.owner.id}/{launch.name}"

    def _secure(self) -> Security:
        if self._security is None:
            self._security = levels.level(self._level, state=str(self._lab.state))
        return self._security

    def _adopt(self, group: Group, launch: Launch, child: Child, channel: Channel, undo: ExitStack) -> ProcessInstance:
        child.await_pid()
        if launch.lease is not None:
            self._connect(launch.lease, child)
            child.release()
        return ContainerInstance(channel, child, undo, self._lab.scratch / launch.name, group, launch)

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

    def __init__(
        self, channel: Channel, child: Child, undo: ExitStack, folder: Path, group: Group, launch: Launch
    ) -> None:
        super().__init__(channel, child, undo, folder)
        self._group = group
        self._limits: Limits = launch.limits
        self._lease = launch.lease
        self._paused = False

    def memory(self) -> MemoryReading:
        """Read what its processes cost, and what its memory cgroup is charged.

        Raises:
            InstanceError: it is gone.
        """
        try:
            return read_memory(self._group.members(), self._group.memory_bytes())
        except HostError as error:
            raise InstanceError("the instance is gone", tail=self.tail) from error

    @property
    def verbs(self) -> Mapping[Verb, Callable[[], float]]:
        """Suspend and resume, by the cgroup freezer."""
        return {"suspend": self._pause, "resume": self._go_on}

    @property
    def lacks(self) -> Mapping[Verb, str]:
        """Why not the others."""
        return LACKS

    def kill(self) -> None:
        """End every process of it at once, suspended or not; idempotent.

        Raises:
            HostError: it does not die.
        """
        if self._paused:
            self._go_on()  # version 1's freezer keeps even SIGKILL waiting
        super().kill()

    def cpu_seconds(self) -> float | None:
        """CPU time it has used so far; ``None`` where no controller counts it."""
        return self._group.cpu_seconds()

    def address(self) -> str | None:
        """Its address on the lab network."""
        return self._lease.address if self._lease is not None else None

    def _pause(self) -> float:
        self._paused = True
        self._group.freeze()
        return time.monotonic()

    def _go_on(self) -> float:
        self._group.thaw()
        self._paused = False
        return time.monotonic()

    def _kill_members(self) -> None:
        self._group.remove()

    def _tell(self, ended: Ended) -> str:
        if not self._group.oom_kills():
            return str(ended)
        limit = f"limit {format_bytes(self._limits.memory_bytes)}"
        return f"killed: out of memory, {limit}" if ended.status == -9 else f"{ended}; out of memory inside, {limit}"


def without_security(lab: Lab) -> ContainerDriver:
    """The driver ``container-off``: namespaces and cgroups, and nothing forbidden."""
    return ContainerDriver(lab, security="off")


def strict(lab: Lab) -> ContainerDriver:
    """The driver ``container-strict``: no capability, a short list of system calls, a read-only root."""
    return ContainerDriver(lab, security="strict")


def _weaker(level: str) -> tuple[str, ...]:
    """What makes a comparison with Docker's containers unfair at another level than its own."""
    if level == "default":
        return ()
    return (f"Its security level is {level}, where Docker's own is {levels.describe('default')}",)


def _network(lease: Lease | None) -> Network | None:
    if lease is None:
        return None
    network = ipaddress.IPv4Network(f"{lease.address}/{lease.prefix_length}", strict=False)
    return {"address": lease.address, "netmask": str(network.netmask), "gateway": lease.gateway}
