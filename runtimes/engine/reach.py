"""A container's files from outside: through its first process, or mounted for the length of a command."""

from __future__ import annotations

import os

from bench.errors import HostError
from runtimes import libc, mounts, rootfs, usernamespace
from runtimes.engine import plan
from runtimes.engine.container import Container
from runtimes.engine.removal import settle
from runtimes.engine.storage import Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Reach:
    """``root``: a descriptor of the container's root directory, with all that is mounted in it; a context manager.

    ``users`` are the user and group, on the host, that are 0 in the owners of its files.

    A stopped container stays locked meanwhile. For it this process enters a mount namespace of its own for good, in
    which paths of the host lead where they did.
    """

    def __init__(self, container: Container) -> None:
        self.root = -1
        self.users = (0, 0)
        self._lock = -1
        self._storage: Storage | None = None
        self._container = container

    def __enter__(self) -> Reach:
        state = self._container.state()
        process = self._container.process(state)
        if process is not None:
            if state["monitor"] is not None:  # whose users are the container's
                usernamespace.enter(state["monitor"][0])
            try:
                self.root = os.open(f"/proc/{process.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise HostError(f"cannot look into container {self._container.name}: {error.strerror}") from error
            if process.alive():
                self.users = self._users(state)
                return self
            os.close(self.root)
        self._lock = self._container.lock()
        settle(self._container, self._lock)
        if self._container.is_monitored():
            raise HostError(f"container {self._container.name} is just starting or ending", hint="try again")
        try:
            self._mount(self._container.config)
        except OSError as error:
            raise HostError(
                f"cannot mount the files of container {self._container.name}: {error.strerror}", hint="it takes root"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._storage is not None:
            self._storage.end()
        for fd in {self.root, self._lock} - {-1}:
            os.close(fd)

    def _users(self, state: dict[str, Any]) -> tuple[int, int]:
        remap = state.get("remap")
        return (remap["uid_map"][0][1], remap["gid_map"][0][1]) if remap else (0, 0)

    def _mount(self, config: dict[str, Any]) -> None:
        path = self._container.path
        usernamespace.enter()
        libc.unshare(libc.CLONE_NEWNS)
        rootfs.detach_from_host(libc.MS_REC | libc.MS_PRIVATE)
        if usernamespace.privileged():
            where = [[config["tree"]], f"{path}/upper", f"{path}/work", f"{path}/root"]
            self.root = rootfs.open_root("overlay", where, libc.MS_REC | libc.MS_PRIVATE, own_users=False, ahead=None)
        else:
            self._mount_rootless()
        self._mount_volumes(config)

    def _mount_rootless(self) -> None:
        at = f"{self._container.path}/root"
        self._storage = Storage(self._container, self._container.state(), lambda: "")
        self.root = os.open(at, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if self._storage.mounted is not None:
            libc.move_mount(self._storage.mounted, self.root)
            os.close(self.root)
            self.root = self._storage.mounted

    def _mount_volumes(self, config: dict[str, Any]) -> None:
        for operation in plan.volumes_of(self._container):
            mounts.perform(self.root, operation)
        if config["read_only"]:
            rootfs.make_read_only(self.root)
