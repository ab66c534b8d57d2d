"""The file system of an instance as data, and the operations that make it.

A list of operations, each ``[name, argument, …]``, travels as JSON to the sandbox helper, which
performs it inside the instance's mount namespace, before the image's code runs. Targets are paths in the
image and the image is hostile: each is resolved below the root's descriptor, and a symbolic link
on the way is refused, so nothing is ever mounted outside the root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from runtimes import libc

Operation = Sequence[Any]

NOTHING_EXECUTABLE: Final = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
_RESOLVE: Final = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_MAGICLINKS


class Target:
    """A path below the root, held open without following any symbolic link; a context manager."""

    def __init__(self, root: int, path: str) -> None:
        self.fd = libc.openat2(root, path, os.O_PATH, _RESOLVE)
        self.path = f"/proc/self/fd/{self.fd}"

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def open_bind_root(tree: str, *, recursive: bool) -> int:
    """Make ``tree`` a read-only mount of itself and return its descriptor.

    ``recursive`` is what an unprivileged user namespace demands: mounts below are locked to it.
    """
    libc.mount(tree, tree, None, libc.MS_BIND | (libc.MS_REC if recursive else 0))
    root = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    libc.mount_setattr(root, libc.AT_RECURSIVE if recursive else 0, libc.MOUNT_ATTR_RDONLY)
    return root


def open_overlay_root(lower: str, upper: str, work: str, target: str) -> int:
    """Mount an overlay of ``lower`` that writes to ``upper`` at ``target`` and return its descriptor."""
    data = f"lowerdir={_escape(lower)},upperdir={_escape(upper)},workdir={_escape(work)}"
    libc.mount("overlay", target, "overlay", 0, data)
    return os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def enter_root(root: int) -> None:
    """Make ``root`` the root directory and detach the host's file system (pivot_root(2), NOTES)."""
    os.fchdir(root)
    libc.pivot_root(".", ".")
    libc.umount2(".", libc.MNT_DETACH)
    os.chdir("/")


def perform(root: int, operation: Operation) -> None:
    """Perform one operation below ``root``.

    Raises:
        OSError: the kernel refused it.
    """
    name, *arguments = operation
    _OPERATIONS[name](root, *arguments)


def describe(operation: Operation) -> str:
    """What ``operation`` does, for an error message."""
    return f"{operation[0]} {operation[1]}"


def _mount(root: int, path: str, fstype: str, flags: int, data: str | None) -> None:
    with Target(root, path) as target:
        libc.mount(fstype, target.path, fstype, flags, data)


def _bind(root: int, path: str, source: str, attributes: int, recursive: bool) -> None:
    """Bind ``source``, a path on the host, over ``path``."""
    depth = libc.AT_RECURSIVE if recursive else 0
    with Target(root, path) as target:
        libc.mount(source, target.path, None, libc.MS_BIND | (libc.MS_REC if recursive else 0))
    if attributes:
        with Target(root, path) as mounted:
            libc.mount_setattr(mounted.fd, depth, attributes)


def _directory(root: int, path: str, mode: int) -> None:
    """Create ``path`` and the directories above it where they are missing."""
    parts = path.strip("/").split("/")
    for depth, name in enumerate(parts):
        with Target(root, "/" + "/".join(parts[:depth])) as parent:
            try:
                os.mkdir(name, mode if depth == len(parts) - 1 else 0o755, dir_fd=parent.fd)
            except FileExistsError:
                continue


def _nodes(root: int, path: str, devices: Mapping[str, Sequence[int]]) -> None:
    """Create character devices in ``path``, name -> major, minor."""
    with Target(root, path) as directory:
        for name, (major, minor) in devices.items():
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=directory.fd)


def _files(root: int, path: str, names: Sequence[str]) -> None:
    """Create empty files in ``path``, to bind over."""
    with Target(root, path) as directory:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory.fd))


def _links(root: int, path: str, links: Mapping[str, str]) -> None:
    """Create symbolic links in ``path``, name -> text."""
    with Target(root, path) as directory:
        for name, text in links.items():
            os.symlink(text, name, dir_fd=directory.fd)


def _hide(root: int, path: str) -> None:
    """Cover ``path`` with nothing: /dev/null over a file, an empty read-only tmpfs over a directory."""
    try:
        target = Target(root, path)
    except FileNotFoundError:  # this kernel has no such file: nothing to hide
        return
    with target:
        if stat.S_ISDIR(os.fstat(target.fd).st_mode):
            libc.mount("tmpfs", target.path, "tmpfs", NOTHING_EXECUTABLE | libc.MS_RDONLY, "size=0,nr_inodes=2")
        else:
            with Target(root, "/dev/null") as null:
                libc.mount(null.path, target.path, None, libc.MS_BIND)


def _protect(root: int, path: str) -> None:
    """Make ``path`` read-only by binding it over itself."""
    try:
        target = Target(root, path)
    except FileNotFoundError:
        return
    with target:
        libc.mount(target.path, target.path, None, libc.MS_BIND | libc.MS_REC)
    with Target(root, path) as mounted:
        libc.mount_setattr(mounted.fd, libc.AT_RECURSIVE, libc.MOUNT_ATTR_RDONLY)


_OPERATIONS: Final[Mapping[str, Callable[..., None]]] = {
    "mount": _mount,
    "bind": _bind,
    "directory": _directory,
    "nodes": _nodes,
    "files": _files,
    "links": _links,
    "hide": _hide,
    "protect": _protect,
}


def _escape(path: str) -> str:
    """Escape what overlayfs gives a meaning to (kernel, Documentation/filesystems/overlayfs.rst)."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
