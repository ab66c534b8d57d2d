"""The parts of a root file system that a process and a container have alike, as operations of ``runtimes.mounts``."""

from __future__ import annotations

from runtimes import libc
from runtimes.mounts import NOTHING_EXECUTABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

DEVICES: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
"""Name -> major, minor (kernel, Documentation/admin-guide/devices.txt)."""

_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_TTY_GROUP: Final = 5
"""Debian's static group id of tty."""


def device_tree(memory_bytes: int, *, bind: bool, rootless: bool, queues: bool = False) -> list[list[Any]]:
    """A /dev with the devices that programs expect and no other.

    ``bind`` takes the nodes from the host instead of creating them; ``queues`` adds /dev/mqueue. /dev/shm may hold
    half of ``memory_bytes``, as on a machine with that much memory (tmpfs(5)).
    """
    group = "" if rootless else f",gid={_TTY_GROUP}"
    directories = dict.fromkeys(("pts", "shm", "mqueue") if queues else ("pts", "shm"), 0o755)
    contents = {"nodes": {} if bind else DEVICES, "links": _LINKS, "directories": directories}
    operations: list[list[Any]] = [["tree", "/dev", "mode=755,size=65536k", contents]]
    if bind:
        operations += [["files", "/dev", list(DEVICES)]]
        operations += [["bind", f"/dev/{name}", f"/dev/{name}", 0, False] for name in DEVICES]
    if queues:
        operations += [["mount", "/dev/mqueue", "mqueue", NOTHING_EXECUTABLE, None]]
    return [
        *operations,
        [
            "mount", "/dev/pts", "devpts", libc.MS_NOSUID | libc.MS_NOEXEC,
            f"newinstance,ptmxmode=0666,mode=0620{group}",
        ],
        ["mount", "/dev/shm", "tmpfs", NOTHING_EXECUTABLE, f"mode=1777,size={memory_bytes // 2}"],
    ]  # fmt: skip
