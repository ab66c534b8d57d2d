"""Idmapped mounts (mount_setattr(2), MOUNT_ATTR_IDMAP): a tree whose owners are others where it is mounted.

What is user 0's on disk is that of the user that 0 of a user namespace is outside, and what that one makes is user 0's
on disk: a container with users of its own shares trees with all others, and nothing is chowned. Only root of the host
may make them (Linux 5.12; the layers of an overlay may be such since 5.19).
"""

from __future__ import annotations

import _signal
import errno
import os

from runtimes import detached, identity, libc
from runtimes.usermap import write_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtimes.usermap import Map

CANNOT = frozenset({errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP})
"""What mount_setattr(2) says of a file system that does not do it, or a mount that is one already."""


def open_users(uid_map: Map, gid_map: Map) -> int:
    """A descriptor of a new user namespace with these maps, in which nobody is.

    Raises:
        OSError: it cannot be made.
        StepFailed: the maps cannot be written.
    """
    read, write = os.pipe()
    pid, pidfd = -1, -1
    try:
        pid, pidfd = libc.clone3(libc.CLONE_NEWUSER, _signal.SIGCHLD)
        if pid == 0:
            os.close(write)
            os.read(read, 1)  # its end: all is done, or its parent is dead
            os._exit(0)
        write_maps(pid, uid_map, gid_map)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(read)
        os.close(write)
        if pid > 0:
            os.waitpid(pid, 0)
            os.close(pidfd)


def clone(path: str, users: int, *, recursive: bool = False, attributes: int = 0) -> int:
    """A detached idmapped copy of the mount at ``path``; devices in it are none.

    Raises:
        OSError: the file system does not do it.
    """
    depth = libc.AT_RECURSIVE if recursive else 0
    tree = libc.open_tree(libc.AT_FDCWD, path, libc.OPEN_TREE_CLONE | depth)
    try:
        wanted = attributes | libc.MOUNT_ATTR_IDMAP | libc.MOUNT_ATTR_NODEV
        libc.mount_setattr(tree, depth, wanted, userns=users)
    except OSError:
        os.close(tree)
        raise
    return tree


def make_overlay(lower: str, directory: str, users: int, root: tuple[int, int]) -> int:
    """A detached overlay of ``lower`` and ``directory``'s ``upper`` and ``work``, mapped; devices in it are none.

    ``root`` is the user and group that 0 is outside: the kernel makes files of its own as who mounts, and only mapped
    ids can. ``directory/root`` is an empty directory. Until Linux 6.15 layers had to be mounted somewhere: they are,
    for that moment, in a mount namespace of this process's own. Its working directory is "/" afterwards.

    Raises:
        OSError: the kernel or a file system does not do it.
    """
    held = [os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)]
    try:
        held += (clone(path, users) for path in (lower, directory))
        libc.unshare(libc.CLONE_NEWNS)
        try:
            identity.act_as(*root)
            return _mount(held[1], held[2], f"{directory}/root", held)
        finally:
            identity.act_as(0, 0)
            libc.setns(held[0], libc.CLONE_NEWNS)
    finally:
        for fd in held:
            os.close(fd)


def _mount(lower: int, layers: int, point: str, held: list[int]) -> int:
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    held.append(os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    libc.move_mount(layers, held[-1])
    directory = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    held += (os.open(name, directory, dir_fd=layers) for name in ("upper", "work", "root"))
    upper, work, inner = held[-3:]
    libc.move_mount(lower, inner)
    below, above, beside = (f"/proc/self/fd/{fd}" for fd in (lower, upper, work))
    return detached.make("overlay", libc.MS_NODEV, f"lowerdir={below},upperdir={above},workdir={beside}")
