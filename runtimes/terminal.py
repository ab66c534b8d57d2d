"""A pseudo-terminal of the instance's own /dev/pts as its console (pty(7), ioctl_tty(2))."""

from __future__ import annotations

import fcntl
import os
import stat
import sys

from runtimes import libc
from runtimes.mounts import STRICT, Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

# asm-generic/ioctls.h
_TIOCSCTTY: Final = 0x540E
_TIOCSWINSZ: Final = 0x5414
_TIOCSPTLCK: Final = 0x4004_5431
_TIOCGPTPEER: Final = 0x5441


class Terminal:
    """Both ends; ``slave`` is what the instance gets, ``master`` is sent to who started it."""

    __slots__ = ("master", "slave")

    def __init__(self, root: int, size: Sequence[int] | None) -> None:
        """Make a pair from /dev/pts below ``root``.

        Raises:
            OSError: there is no devpts.
        """
        self.master = libc.openat2(root, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY, STRICT)
        if libc.fstatfs(self.master) != libc.DEVPTS_SUPER_MAGIC:
            raise FileNotFoundError(2, "/dev/pts is no devpts")
        fcntl.ioctl(self.master, _TIOCSPTLCK, b"\0\0\0\0")
        self.slave = fcntl.ioctl(self.master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        if size is not None:
            rows, columns = size
            fcntl.ioctl(self.master, _TIOCSWINSZ, _window(rows, columns))

    def bind_console(self, root: int) -> None:
        """Let /dev/console be it as well, as in runc."""
        with Target(root, "/dev") as directory:
            if "console" not in os.listdir(f"/proc/self/fd/{directory.fd}"):
                os.mknod("console", stat.S_IFREG | 0o600, dir_fd=directory.fd)
        tree = libc.open_tree(self.slave, "", libc.OPEN_TREE_CLONE | libc.AT_EMPTY_PATH)
        try:
            with Target(root, "/dev/console") as console:
                libc.move_mount(tree, console.fd)
        finally:
            os.close(tree)

    def control(self) -> None:
        """Make it the controlling terminal of this session, whose leader this process is."""
        fcntl.ioctl(self.slave, _TIOCSCTTY, 0)


def _window(rows: int, columns: int) -> bytes:
    """A ``struct winsize``."""
    return b"".join([number.to_bytes(2, sys.byteorder) for number in (rows, columns, 0, 0)])
