"""One start by an ordinary user: what stands in for what root has.

The monitor is root of a user namespace (``runtimes.usernamespace``), and the container has one of its own below it with
the same users, so that it has no power over the monitor. Its root is the kernel's overlay where that mounts in a user
namespace, else fuse-overlayfs; its network is slirp4netns or pasta, else loopback alone; its limits are those of a
delegated cgroup, else none, and whoever asks for one is refused.

A container that shares namespaces with another one shares its users as well.
"""

from __future__ import annotations

from bench.errors import HostError, InstanceError
from runtimes import libc, usernamespace
from runtimes.container.nogroup import NoGroup
from runtimes.engine.containers import find
from runtimes.engine.storage import Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from runtimes.container.cgroup import Group
    from runtimes.container.hierarchy import Layout
    from runtimes.container.resources import Resources
    from runtimes.engine.container import Container
    from runtimes.engine.journal import Entry, Journal
    from runtimes.network.lease import Port
    from runtimes.network.usermode import Helper
    from runtimes.spec import Spec


class Rootless:
    """What one start has; ``end`` gives it back.

    Attributes:
        facts: For the container's state: ``storage``, which overlay; ``limits``, why there can be none, or ``None``;
            ``delegated``, the cgroup that its own is below, or ``None``; ``network``, the program that is it.
    """

    def __init__(self, container: Container, journal: Journal) -> None:
        """Become root of the user namespace.

        Raises:
            HostError: the host does not allow it.
            InstanceError: a container that it shares namespaces with does not run, or there are two.
        """
        self.facts: dict[str, Any] = {"storage": None, "limits": None, "delegated": None, "network": None}
        self._container = container
        self._journal = journal
        self._entry: Entry | None = None
        self._storage: Storage | None = None
        self._helper: Helper | None = None
        self._program: str | None = None
        self._ports: Sequence[Port] = ()
        self._shared = _shared(container)
        usernamespace.enter(None if self._shared is None else self._shared[1])

    def give_users(self, spec: Spec) -> None:
        """Give the instance a user namespace of its own, or that of the container it shares others with."""
        if self._shared is not None:
            spec["join"].append([libc.CLONE_NEWUSER, f"/proc/{self._shared[0]}/ns/user"])
            return
        spec["namespaces"] |= libc.CLONE_NEWUSER
        spec["uid_map"], spec["gid_map"] = usernamespace.nested_maps()

    def open_root(self, spec: Spec, held: list[int]) -> int | None:
        """Make the root: the detached mount for the instance, or ``None`` with ``spec`` changed to what is mounted.

        ``held`` gets the descriptors that the caller closes when the instance runs.

        Raises:
            HostError: there is no way.
        """
        self._storage = Storage(self._container, self._container.state(), self._mark)
        self.facts["storage"] = self._storage.kind
        if self._storage.mounted is None:
            spec["root"] = ["directory", f"{self._container.path}/root"]
        else:
            held.append(self._storage.mounted)
        return self._storage.mounted

    def check_limits(self, layout: Layout, group: Group | NoGroup, resources: Resources) -> None:
        """Note what limits there can be.

        Raises:
            HostError: one was asked for and there can be none.
        """
        if not isinstance(group, NoGroup):
            self.facts["delegated"] = layout.unified.top if layout.unified is not None else None
            return
        self.facts["limits"] = f"none: {group.reason.message}"
        if resources.controllers() or resources.block_controller(layout):
            raise HostError(f"no limit can be set: {group.reason.message}", hint=group.reason.hint)

    def plan_network(self, ports: Sequence[Port]) -> dict[str, Any] | None:
        """Decide what the network is: its addresses, as ``launch.describe`` has them, or ``None`` for loopback alone.

        Raises:
            HostError: ports are to be published and nothing can.
        """
        from runtimes.network import usermode

        self._program, self._ports = usermode.available(), ports
        self.facts["network"] = self._program
        if self._program is None:
            if ports:
                raise HostError(
                    "no port can be published: without root that takes slirp4netns or pasta",
                    hint="apt-get install slirp4netns",
                )
            return None
        address, gateway, nameserver = usermode.ADDRESSES[self._program]
        return {
            "address": address,
            "prefix_length": usermode.PREFIX_LENGTH if address else 0,
            "gateway": gateway,
            "nameserver": nameserver,
            "interface": usermode.INTERFACE,
        }

    def connect(self, pid: int) -> list[Port]:
        """Start the network of process ``pid``, if there is one to start; the ports, decided.

        Raises:
            HostError: it does not start, or a port is taken.
        """
        from runtimes.network import usermode

        if self._program is None:
            return []
        self._helper = usermode.start(
            pid, self._container.path, self._ports, marker=self._mark(), program=self._program
        )
        return self._helper.ports

    def end(self) -> None:
        """Give everything back; idempotent."""
        if self._helper is not None:
            self._helper.stop()
            self._helper = None
        if self._storage is not None:
            self._storage.end()
            self._storage = None
        if self._entry is not None:
            self._journal.gone(self._entry)
            self._entry = None

    def _mark(self) -> str:
        """The marker of helpers, whose processes the journal owns by it."""
        if self._entry is None:
            self._entry = self._journal.own("process", marker=self._journal.owner.id)
        return self._journal.owner.id


def _shared(container: Container) -> tuple[int, int] | None:
    """The first process and the monitor of the container whose namespaces this one shares."""
    config = container.config
    wanted = (config["network"], *config["namespaces"].values())
    found = {value.partition(":")[2] for value in wanted if value.startswith("container:")}
    others = {other.id: other for other in (find(container.place, name) for name in found)}
    if len(others) > 1:
        raise InstanceError(
            "an ordinary user's container can share namespaces with one container only", hint="name the same one"
        )
    for other in others.values():
        state = other.state()
        process = other.process(state)
        if process is None or state["monitor"] is None:
            raise InstanceError(
                f"container {other.name}, whose namespaces it shares, does not run",
                hint=f"isomark container start {other.name}",
            )
        return process.pid, int(state["monitor"][0])
    return None
