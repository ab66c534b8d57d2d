"""What one start has from the host: whose users it has, who makes its root, what connects and limits it.

``Means`` is what root's containers have, with the host's users. An ordinary user's (``runtimes.engine.rootless``) and
those with ``--userns private`` (``runtimes.engine.remap``) have something else for some of it.
"""

from __future__ import annotations

from runtimes import usernamespace
from runtimes.detached import make_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from runtimes.container.cgroup import Group
    from runtimes.container.hierarchy import Layout
    from runtimes.container.nogroup import NoGroup
    from runtimes.container.resources import Resources
    from runtimes.engine.container import Container
    from runtimes.engine.journal import Journal
    from runtimes.engine.networks import Bridge, UserMode
    from runtimes.spec import Spec
    from runtimes.steps import Steps


class Means:
    """As root has them. ``end`` gives everything back, however far the start came."""

    own_users = False
    """Whether the container has a user namespace of its own."""

    def __init__(self, container: Container, doing: Steps) -> None:
        """``doing`` learns what is done."""
        self._container = container
        self._doing = doing

    def state(self) -> dict[str, Any]:
        """``rootless`` and ``remap`` as the container's state has them (``runtimes.engine.container``)."""
        return {"rootless": None, "remap": None}

    def give_users(self, spec: Spec) -> None:
        """Have the instance get its user namespace."""

    def delegation(self, _layout: Layout) -> dict[str, str]:
        """What the journal's entry of the cgroup needs besides its name."""
        return {}

    def check_limits(self, layout: Layout, group: Group | NoGroup, resources: Resources) -> None:
        """Note what limits there can be.

        Raises:
            HostError: one was asked for and there can be none.
        """

    def is_born_in_cgroup(self, _spec: Spec) -> bool:
        """Whether who makes the instance can reach a cgroup of version 2; else the instance enters it by a file."""
        return True

    def network(self) -> Bridge | UserMode:
        """The network that ``--network bridge`` means."""
        from runtimes.engine.networks import Bridge  # not on the way of who has none

        return Bridge(self._container)

    def prepare_root(self, spec: Spec, held: list[int]) -> None:
        """Before the birth, make the root and whatever its process could not; ``spec`` is changed accordingly.

        ``held`` gets the descriptors that the caller closes when the instance runs.

        Raises:
            HostError: there is no way.
        """

    def root(self, spec: Spec, held: list[int]) -> int | None:
        """The root for the instance, a detached mount; ``None``: it makes it. Root does that while it is being born."""
        self._doing.begin("make its root")
        root = make_root(spec)
        held += [] if root is None else [root]
        return root

    def lend_streams(self, fds: Sequence[int]) -> None:
        """Let the container's users open the pipes among ``fds`` once more, as /dev/stdout."""

    def attend(self, pid: int, spec: Spec) -> None:
        """Do for process ``pid``, which is not set up yet, what it could not.

        Raises:
            HostError: the kernel refuses.
        """

    def end(self) -> None:
        """Give everything back; idempotent.

        Raises:
            HostError: something is not taken back.
        """


def means_of(container: Container, journal: Journal, doing: Steps) -> Means:
    """The kind that this process and what was asked for come to.

    Raises:
        HostError: the host does not allow it.
        InstanceError: a container that this one shares namespaces with does not run.
    """
    if not usernamespace.privileged():
        from runtimes.engine.rootless import Rootless

        return Rootless(container, journal, doing)
    if container.config["namespaces"]["userns"] == "private":
        from runtimes.engine.remap import Remap

        return Remap(container, doing)
    return Means(container, doing)


def shares(config: dict[str, Any]) -> bool:
    """Whether a container with this config shares a namespace with another one (``runtimes.engine.sharing``)."""
    wanted = (config["network"], *config["namespaces"].values())
    return any(value.startswith("container:") for value in wanted)
