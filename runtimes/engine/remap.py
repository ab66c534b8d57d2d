"""One start by root with ``--userns private``: the container's users are ids that nobody has on the host.

The ids are root's, or user isomark's, in /etc/subuid and /etc/subgid, else 65536 that systemd's document on users and
groups lists as unused (systemd, docs/UIDS-GIDS.md: 1879048192 to 2147352575). All such containers have the same ones.
On disk the owners are what they are without it (``runtimes.idmap``): the image's tree serves every container, and a
volume as well. A mount that cannot be mapped keeps the host's owners, whom the container sees as nobody; ``state`` says
which.

A container that shares namespaces with another one shares its users as well.
"""

from __future__ import annotations

import os
import stat

from bench.errors import HostError, InstanceError
from runtimes import idmap, libc, usernamespace
from runtimes.engine.means import Means
from runtimes.engine.sharing import shared_by
from runtimes.steps import StepFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from runtimes.engine.container import Container
    from runtimes.engine.sharing import Shared
    from runtimes.spec import Spec
    from runtimes.steps import Steps

COUNT: Final = 65536
FIRST_UNUSED: Final = 1_879_048_192
_OWNERS: Final = ("root", "0", "isomark")
_HINT: Final = (
    "--userns private takes Linux 5.19, and ISOMARK_STATE on a file system that can be mounted with other owners "
    "(ext4, xfs, btrfs; tmpfs since 6.3); --userns host does without"
)


class Remap(Means):
    """What one start has."""

    own_users = True

    def __init__(self, container: Container, doing: Steps) -> None:
        """Find the users.

        Raises:
            InstanceError: a container that it shares namespaces with does not run, or has other users.
        """
        super().__init__(container, doing)
        self._shared = _shared(container)
        users, groups = _maps() if self._shared is None else _maps_of(self._shared.pid)
        self._owner = users[0][1], groups[0][1]
        self._score: int | None = None
        self._root = -1
        self._facts: dict[str, Any] = {"uid_map": users, "gid_map": groups, "unmapped": []}

    def state(self) -> dict[str, Any]:
        """``uid_map`` and ``gid_map``, rows of the user namespace, and ``unmapped``, targets with the host's owners."""
        return {"rootless": None, "remap": self._facts}

    def give_users(self, spec: Spec) -> None:
        """Give the instance a user namespace of its own, or that of the container it shares others with."""
        if self._shared is not None:
            spec["join"].append(self._shared.entrance(libc.CLONE_NEWUSER, "user"))
            return
        spec["namespaces"] |= libc.CLONE_NEWUSER
        spec["uid_map"], spec["gid_map"] = self._facts["uid_map"], self._facts["gid_map"]
        self._score, spec["oom_score_adj"] = spec["oom_score_adj"], None  # it could not lower its own

    def is_born_in_cgroup(self, spec: Spec) -> bool:
        """Not if who makes the instance is of its users already (``runtimes.entering``), and cannot reach a cgroup."""
        return self._shared is None and spec["time_offsets"] is None

    def prepare_root(self, spec: Spec, held: list[int]) -> None:
        """Make the root and all that is bound; ``spec`` is changed to what then is inherited.

        Raises:
            HostError: the kernel or a file system does not do it.
        """
        self._doing.begin("make its root and mounts for its users")
        path, tree = self._container.path, self._container.config["tree"]
        try:
            users = idmap.open_users(self._facts["uid_map"], self._facts["gid_map"])
            held.append(users)
            self._root = idmap.make_overlay(tree, path, users, self._owner)
        except (OSError, StepFailed) as error:
            reason = error.reason if isinstance(error, StepFailed) else error.strerror
            raise HostError(f"cannot give the container users of its own: {reason}", hint=_HINT) from error
        held.append(self._root)
        spec["root"][4] = "/"  # where it is mounted: the container's directory is not for its users
        as_it_is = {mount["target"] for mount in self._container.config["mounts"] if not mount.get("idmap", True)}
        for place, operation in enumerate(spec["mounts"]):
            if operation[0] == "user_bind":
                spec["mounts"][place] = self._lent(operation, users, held, mapped=operation[1] not in as_it_is)

    def root(self, _spec: Spec, _held: list[int]) -> int | None:
        """That root."""
        return self._root

    def _lent(self, operation: Sequence[Any], users: int, held: list[int], *, mapped: bool) -> list[Any]:
        _, target, source, attributes, _, recursive, _, propagation = operation
        tree = -1
        try:
            if mapped:
                tree = _clone_mapped(source, users, recursive=recursive, attributes=attributes)
            if tree == -1:
                self._facts["unmapped"].append(target)
                tree = _clone(source, recursive=recursive, attributes=attributes)
        except OSError as error:
            raise HostError(f"cannot bind {source}: {error.strerror}") from error
        held.append(tree)
        return ["lent", target, tree, propagation]

    def lend_streams(self, fds: Sequence[int]) -> None:
        """Give the pipes among ``fds`` to the container's root, who may want to open /dev/stdout."""
        lend_streams(fds, self._owner)

    def attend(self, pid: int, spec: Spec) -> None:
        """Do for process ``pid``, which is not set up yet, what only root of the host may.

        Raises:
            HostError: the kernel refuses.
        """
        if self._score is not None:
            try:
                with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
                    file.write(str(self._score))
            except OSError as error:
                raise HostError(f"cannot set its score for the out-of-memory killer: {error.strerror}") from error
        if spec["rlimits"]:
            _raise_limits(pid, spec["rlimits"])


def lend_streams(fds: Sequence[int], root: tuple[int, int]) -> None:
    """Give the pipes among ``fds`` to user and group ``root``."""
    for fd in fds:
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.fchown(fd, *root)


def _maps() -> tuple[list[list[int]], list[list[int]]]:
    firsts = [
        next((first for first, count in usernamespace.ranges(path, _OWNERS) if count >= COUNT), None)
        for path in ("/etc/subuid", "/etc/subgid")
    ]
    users, groups = (FIRST_UNUSED, FIRST_UNUSED) if None in firsts else firsts
    return [[0, users or 0, COUNT]], [[0, groups or 0, COUNT]]


def _maps_of(pid: int) -> tuple[list[list[int]], list[list[int]]]:
    return usernamespace.map_of("uid_map", pid), usernamespace.map_of("gid_map", pid)


def _shared(container: Container) -> Shared | None:
    """A namespace of the containers whose users this one has, with their others."""
    shared = shared_by(container)
    spaces = {os.stat(f"/proc/{each.pid}/ns/user").st_ino for each in shared}
    if len(spaces) > 1 or os.stat("/proc/self/ns/user").st_ino in spaces:
        raise InstanceError(
            "--userns private shares namespaces only with one container's users",
            hint="start the other container with --userns private as well, or this one without",
        )
    return shared[0] if shared else None


def _clone_mapped(source: str, users: int, *, recursive: bool, attributes: int) -> int:
    """A detached idmapped copy; -1 if the file system does not do that."""
    try:
        return idmap.clone(source, users, recursive=recursive, attributes=attributes)
    except OSError as error:
        if error.errno not in idmap.CANNOT:
            raise
        return -1


def _clone(source: str, *, recursive: bool, attributes: int) -> int:
    depth = libc.AT_RECURSIVE if recursive else 0
    tree = libc.open_tree(libc.AT_FDCWD, source, libc.OPEN_TREE_CLONE | depth)
    try:
        if attributes:
            libc.mount_setattr(tree, depth, attributes)
    except OSError:
        os.close(tree)
        raise
    return tree


def _raise_limits(pid: int, limits: Sequence[Sequence[int]]) -> None:
    """Raise hard limits to what the process will set itself, for which it lacks the power."""
    import resource  # only for --ulimit

    for number, _, hard in limits:
        soft, held = resource.prlimit(pid, number)
        if held != resource.RLIM_INFINITY and (hard == -1 or hard > held):
            try:
                resource.prlimit(pid, number, (soft, hard))
            except PermissionError:  # not ours to raise: the process will say so when it sets it
                return
