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
from runtimes.engine.means import Means
from runtimes.engine.networks import UserMode
from runtimes.engine.sharing import shared_by
from runtimes.engine.storage import Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtimes.container.cgroup import Group
    from runtimes.container.hierarchy import Layout
    from runtimes.container.resources import Resources
    from runtimes.engine.container import Container
    from runtimes.engine.journal import Entry, Journal
    from runtimes.engine.sharing import Shared
    from runtimes.spec import Spec
    from runtimes.steps import Steps


class Rootless(Means):
    """What one start has; ``end`` gives it back."""

    own_users = True

    def __init__(self, container: Container, journal: Journal, doing: Steps) -> None:
        """Become root of the user namespace.

        Raises:
            HostError: the host does not allow it.
            InstanceError: a container that it shares namespaces with does not run, or there are two.
        """
        super().__init__(container, doing)
        self._facts: dict[str, Any] = {"storage": None, "limits": None, "delegated": None, "network": None}
        self._journal = journal
        self._entry: Entry | None = None
        self._storage: Storage | None = None
        self._shared = _shared(container)
        usernamespace.enter(None if self._shared is None else self._shared.monitor)

    def state(self) -> dict[str, Any]:
        """``storage``, which overlay; ``limits``, why there can be none, or ``None``; ``delegated``, the cgroup that
        its own is below, or ``None``; ``network``, the program that is it.
        """  # noqa: D205
        return {"rootless": self._facts, "remap": None}

    def give_users(self, spec: Spec) -> None:
        """Give the instance a user namespace of its own, or that of the container it shares others with."""
        if self._shared is not None:
            spec["join"].append(self._shared.entrance(libc.CLONE_NEWUSER, "user"))
            return
        spec["namespaces"] |= libc.CLONE_NEWUSER
        spec["uid_map"], spec["gid_map"] = usernamespace.nested_maps()

    def prepare_root(self, spec: Spec, held: list[int]) -> None:
        """Make the root: a detached mount, or ``spec`` is changed to what is mounted.

        Raises:
            HostError: there is no way.
        """
        self._doing.begin("make its root and mounts for its users")
        self._storage = Storage(self._container, self._container.state(), self._mark)
        self._facts["storage"] = self._storage.kind
        if self._storage.mounted is None:
            spec["root"] = ["directory", f"{self._container.path}/root"]
        else:
            held.append(self._storage.mounted)

    def root(self, _spec: Spec, _held: list[int]) -> int | None:
        """That one."""
        return None if self._storage is None else self._storage.mounted

    def delegation(self, layout: Layout) -> dict[str, str]:
        """The group that the cgroup is below."""
        return {} if layout.unified is None else {"delegated": layout.unified.top}

    def check_limits(self, layout: Layout, group: Group | NoGroup, resources: Resources) -> None:
        """Note what limits there can be.

        Raises:
            HostError: one was asked for and there can be none.
        """
        if not isinstance(group, NoGroup):
            self._facts["delegated"] = layout.unified.top if layout.unified is not None else None
            return
        self._facts["limits"] = f"none: {group.reason.message}"
        if resources.controllers() or resources.block_controller(layout):
            raise HostError(f"no limit can be set: {group.reason.message}", hint=group.reason.hint)

    def network(self) -> UserMode:
        """One in user mode, if a program for that is installed."""
        network = UserMode(self._container, self._mark)
        self._facts["network"] = network.program
        return network

    def end(self) -> None:
        """Give everything back; idempotent."""
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


def _shared(container: Container) -> Shared | None:
    """A namespace of the container whose users this one has, with its others."""
    shared = shared_by(container)
    if len({each.container.id for each in shared}) > 1:
        raise InstanceError(
            "an ordinary user's container can share namespaces with one container only", hint="name the same one"
        )
    return shared[0] if shared else None
