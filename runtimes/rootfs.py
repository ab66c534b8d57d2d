"""The root directory of an instance: made a mount, entered, and the host's detached."""

from __future__ import annotations

import os

from runtimes import libc
from runtimes.detached import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

_OPTIONS_BYTES: Final = 4096
"""The kernel takes one page of mount options (mount(2))."""


def detach_from_host(propagation: int) -> None:
    """Decide, for a new mount namespace, how mounts made here and on the host spread (mount_namespaces(7))."""
    libc.mount(None, "/", None, propagation)


def open_root(kind: str, arguments: Sequence[Any], propagation: int, *, own_users: bool, ahead: int | None) -> int:
    """Make the root that ``Spec`` describes a mount and return its descriptor.

    ``ahead`` is an overlay that the parent made already.

    Raises:
        OSError: the kernel refused it.
    """
    if ahead is not None:
        _make_parent_private(arguments[3], propagation)
        point = os.open(arguments[3], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        libc.move_mount(ahead, point)
        os.close(point)
        return ahead
    if kind == "overlay":
        lowers, upper, work, target = arguments
        _make_parent_private(target, propagation)
        _mount_overlay(lowers, upper, work, target, own_users=own_users)
        return os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    path = arguments[0]
    recursive = kind == "directory" or arguments[1]
    _make_parent_private(path, propagation)
    libc.mount(path, path, None, libc.MS_BIND | (libc.MS_REC if recursive else 0))
    root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if kind == "bind":
        libc.mount_setattr(root, libc.AT_RECURSIVE if recursive else 0, libc.MOUNT_ATTR_RDONLY)
    return root


def make_read_only(root: int) -> None:
    """Let nothing be written on the root's own mount; those below it stay as they are."""
    libc.mount_setattr(root, 0, libc.MOUNT_ATTR_RDONLY)


def enter_root(root: int, propagation: int) -> None:
    """Make ``root`` the root directory and detach the host's file system (pivot_root(2), NOTES)."""
    os.fchdir(root)
    libc.pivot_root(".", ".")
    if propagation & libc.MS_SHARED:  # or the host's mounts would be unmounted with ours
        libc.mount(None, ".", None, libc.MS_REC | libc.MS_SLAVE)
    libc.umount2(".", libc.MNT_DETACH)
    os.chdir("/")


def _mount_overlay(lowers: Sequence[str], upper: str, work: str, target: str, *, own_users: bool) -> None:
    """Mount an overlay of ``lowers``, topmost first, that writes to ``upper``.

    In a user namespace its marks are extended attributes of users (kernel, filesystems/overlayfs.rst, "User xattr").
    """
    suffix = ",userxattr" if own_users else ""
    data = f"lowerdir={':'.join(map(escape, lowers))},upperdir={escape(upper)},workdir={escape(work)}{suffix}"
    held: list[int] = []
    if len(os.fsencode(data)) >= _OPTIONS_BYTES:
        held = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in (*lowers, upper, work)]
        *below, above, beside = (f"/proc/self/fd/{fd}" for fd in held)
        data = f"lowerdir={':'.join(below)},upperdir={above},workdir={beside}{suffix}"
    try:
        libc.mount("overlay", target, "overlay", 0, data)
    finally:
        for fd in held:
            os.close(fd)


def _make_parent_private(path: str, propagation: int) -> None:
    """Where mounts spread, keep the root's own from it: pivot_root(2) wants its parent mount private."""
    if not propagation & libc.MS_SHARED:
        return
    best = "/"
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:
        for line in table:
            point = _unescape(line.split(" ")[4])
            if (path + "/").startswith(point.rstrip("/") + "/") and len(point) > len(best):
                best = point
    libc.mount(None, best, None, libc.MS_PRIVATE)


def _unescape(point: str) -> str:
    """What mountinfo writes in octal (proc(5)); by hand: a codec would be imported from whatever root this is."""
    for character in (" ", "\t", "\n", "#", "\\"):
        point = point.replace(f"\\{ord(character):03o}", character)
    return point
