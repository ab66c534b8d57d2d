"""The driver ``native``: the image's tree as a bare process, the base that every ratio stands on.

The process has a mount namespace of its own and nothing else: the host's processes, network, IPC and host
name are its own, no cgroup limits it. The namespace is there so that its mounts die with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from bench.channel import Channel
from bench.driver import Launch
from bench.memory import read_memory
from bench.model import Kind, MemoryReading
from runtimes import libc, usernamespace
from runtimes.birth import plain
from runtimes.devices import device_tree
from runtimes.driver import SCRATCH, Prepared, SandboxDriver, choose_cpus
from runtimes.instance import KILL_SECONDS, ProcessInstance
from runtimes.members import Namespace
from runtimes.spawner import Child
from runtimes.spec import Spec

PARITY: Final = (
    "Pinned to as many CPUs as the limit says, where a container has a quota on all of them",
    "The limits on memory, processes and disk are not enforced",
    "Shares the host's network, so a client on the host reaches it over the loopback interface",
)


class NativeDriver(SandboxDriver):
    """Starts bare processes; works without root where the kernel grants user namespaces."""

    name = "native"
    kind: Kind = "process"
    form: ClassVar[str] = "unpacked tree, read-only bind"
    directories: ClassVar[Mapping[str, int]] = {"scratch": 0o1777}

    def describe(self) -> Mapping[str, str]:
        """Engine, isolation, limits, and what differs from other drivers."""
        namespaces = "mount" if _is_root() else "user, mount"
        return {
            "engine": "isomark built-in",
            "namespaces": namespaces,
            "security": "none",
            "limits": "cpus by affinity",
            "memory limit": "not enforced",
            "root file system": self.form,
            "network": "the host's",
            "parity": "\n".join(PARITY),
        }

    def _spec(self, tree: Path, launch: Launch) -> Spec:
        rootless = not _is_root()
        uid_map, gid_map = usernamespace.maps() if rootless else (None, None)
        scratch = str(self._lab.scratch / launch.name / "scratch")
        return {
            **plain(),
            "command": list(launch.command),
            "environment": self._environment(launch),
            "namespaces": libc.CLONE_NEWNS | (libc.CLONE_NEWUSER if rootless else 0),
            "root": ["bind", str(tree), rootless],
            "mounts": _mounts(launch.limits.memory_bytes, scratch, rootless=rootless),
            "cpus": list(choose_cpus(launch.limits.cpus)),
            "user": {"name": None, "uid": 0, "gid": 0, "groups": [], "umask": 0o022},
            "uid_map": uid_map,
            "gid_map": gid_map,
            "wait": True,
            "tie": True,
            "trace": True,
        }

    def _prepare(self, launch: Launch, _undo: ExitStack, _brief: ExitStack) -> Prepared:
        return Prepared(partial(self._adopt, self._lab.scratch / launch.name))

    def _adopt(self, folder: Path, child: Child, channel: Channel, undo: ExitStack) -> ProcessInstance:
        child.await_pid()
        try:
            namespace = Namespace(child.pid, "mnt")
        except OSError:  # its set-up has failed so early that it is gone
            child.await_exec()
            raise
        undo.callback(namespace.close)
        child.release()
        return NativeInstance(channel, child, undo, folder, namespace)


class NativeInstance(ProcessInstance):
    """A bare process and whatever it forked, told by its mount namespace."""

    def __init__(self, channel: Channel, child: Child, undo: ExitStack, folder: Path, namespace: Namespace) -> None:
        super().__init__(channel, child, undo, folder)
        self._namespace = namespace

    def memory(self) -> MemoryReading:
        """Read what its processes cost; it has no cgroup.

        Raises:
            InstanceError: it is gone.
        """
        return read_memory(self._namespace.members(), None)

    def address(self) -> str:
        """The loopback address, because it shares the host's network."""
        return "127.0.0.1"

    def _kill_members(self) -> None:
        self._namespace.kill(KILL_SECONDS)


def _mounts(memory_bytes: int, scratch: str, *, rootless: bool) -> list[list[Any]]:
    """What is mounted over the read-only tree. Without root, binds must take what is mounted below along."""
    return [
        ["bind", "/proc", "/proc", 0, True],
        ["bind", "/sys", "/sys", libc.MOUNT_ATTR_RDONLY, rootless],
        *device_tree(memory_bytes, bind=True, rootless=rootless),
        ["mount", "/tmp", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=1777"],
        ["mount", "/run", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=755"],
        ["bind", SCRATCH, scratch, 0, False],
    ]


def _is_root() -> bool:
    return os.geteuid() == 0
