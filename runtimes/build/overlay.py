"""Seeing a stack of directories as one tree, in a mount namespace that takes its mounts along when it ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from runtimes import libc, usernamespace

_OFF: Final = "index=off,metacopy=off,redirect_dir=off"
"""Each directory stays complete in itself, so that it can be stored, and be a lower one in another mount."""

_OFF_FOR_USERS: Final = "index=off,userxattr"
"""In a user namespace, where the last means all the rest (kernel, filesystems/overlayfs.rst, "User xattr")."""


def enter_own_mounts() -> None:
    """Leave the host's mount namespace; nothing mounted from here on is seen outside."""
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)


def mount_overlay(lowers: Sequence[str], target: str, upper: str = "", work: str = "") -> None:
    """Mount ``lowers``, topmost first, at the directory ``target``; read-only without ``upper``.

    Raises:
        OSError: the kernel refuses it.
    """
    # by descriptor: the options must fit a page, and a path may hold what they give a meaning to
    fds = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in (*lowers, *filter(None, (upper, work)))]
    try:
        paths = [f"/proc/self/fd/{fd}" for fd in fds]
        options = [f"lowerdir={':'.join(paths[: len(lowers)])}", _OFF if usernamespace.privileged() else _OFF_FOR_USERS]
        if upper:
            options += [f"upperdir={paths[-2]}", f"workdir={paths[-1]}"]
        elif len(lowers) == 1:  # an overlay of one directory is refused
            libc.mount(lowers[0], target, None, libc.MS_BIND)
            return
        libc.mount("overlay", target, "overlay", 0 if upper else libc.MS_RDONLY, ",".join(options))
    finally:
        for fd in fds:
            os.close(fd)
