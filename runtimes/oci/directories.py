"""The directories of a tree that is being written: each opened below its root, made where missing, finished last.

A path is resolved by openat2(2) with the tree as its root, so a symbolic link, "..", or an absolute target
ends inside. One descriptor is kept: entries of a layer come directory by directory.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtimes import libc
from runtimes.oci.names import MAX_DEPTH, parts_of, too_deep

RESOLVE: Final = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
"""How every path of a layer is resolved."""
PATH_ONLY: Final = os.O_PATH | os.O_DIRECTORY
DEFAULT_ACL: Final = "system.posix_acl_default"
_NOTHING_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(slots=True)
class Finish:
    """What a directory shall be like once nothing is written below it any more.

    A default access list waits as well, because what is made below would inherit it.
    """

    mtime_ns: int
    mode: int
    default_acl: bytes | None = None


class Directories:
    """The directories below ``root``, and of them the one that was entered last."""

    def __init__(self, root: Path) -> None:
        self.root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.asked: str | None = None
        """The path that was entered last, as the layer wrote it; ``fd`` and ``name`` are what it led to."""
        self.fd = -1
        self.name = ""
        self._prefix = len(os.readlink(f"/proc/self/fd/{self.root}").rstrip("/")) + 1
        self._finish = {"": Finish(0, 0o755)}

    def close(self) -> None:
        """Let go of the tree."""
        self._forget()
        os.close(self.root)

    def enter(self, path: str) -> None:
        """Make ``fd`` and ``name`` those of the directory ``path``, made with its own parents if missing.

        Raises:
            ImageError: it climbs, or nests too deeply.
            OSError: the kernel cannot resolve or make it.
        """
        self._forget()
        self.fd = self._open_or_make("/".join(parts_of(path)))
        self.asked = path
        self.name = self.name_of(self.fd)

    def name_of(self, directory: int) -> str:
        """Where ``directory`` really is below the root: two paths through links give one name."""
        name = os.readlink(f"/proc/self/fd/{directory}")[self._prefix :]
        if name.count("/") >= MAX_DEPTH:
            raise too_deep()
        return name

    def finish_later(self, name: str, wanted: Finish) -> None:
        """Note what the directory ``name``, as ``name_of`` gives it, shall be like in the end."""
        self._finish[name] = wanted

    def finish(self) -> None:
        """Give every directory what was noted for it, the deepest first.

        Raises:
            OSError: the kernel refuses.
        """
        self._forget()
        for name in sorted(self._finish, reverse=True):
            self._settle(name, self._finish[name])

    def _settle(self, name: str, wanted: Finish) -> None:
        try:
            fd = libc.openat2(self.root, name or ".", os.O_RDONLY | os.O_DIRECTORY, RESOLVE | libc.RESOLVE_NO_SYMLINKS)
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return  # a later entry hid or replaced it
            raise
        try:
            os.fchmod(fd, wanted.mode)
            if wanted.default_acl is not None:
                os.setxattr(fd, DEFAULT_ACL, wanted.default_acl)
            os.utime(fd, ns=(wanted.mtime_ns, wanted.mtime_ns))
        finally:
            os.close(fd)

    def _open_or_make(self, path: str) -> int:
        try:
            return libc.openat2(self.root, path or ".", PATH_ONLY, RESOLVE)
        except FileNotFoundError:
            above, _, name = path.rpartition("/")
        parent = self._open_or_make(above)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
            self.finish_later(os.path.join(self.name_of(parent), name), Finish(0, 0o755))
        finally:
            os.close(parent)
        return libc.openat2(self.root, path, PATH_ONLY, RESOLVE)

    def _forget(self) -> None:
        if self.fd != -1:
            os.close(self.fd)
            self.asked, self.fd = None, -1
