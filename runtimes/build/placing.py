"""Writing into an image's tree: every path is resolved with the tree as root, and the last part is never followed."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from bench.errors import HostError, ImageError
from runtimes import libc
from runtimes.build.ownership import Mode, Owner

_IN_ROOT: Final = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT_MODE: Final = 0o755
_MAX_LINKS: Final = 40
"""As the kernel (path_resolution(7))."""


@dataclass(frozen=True)
class Looks:
    """What a thing shall look like; ``mode`` with its type."""

    mode: int
    owner: Owner
    mtime_ns: int
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


class Placer:
    """Writes below the directory that ``root`` is a descriptor of.

    ``owner`` is who gets the directories that are made on the way, and with ``owner_of_all`` everything else too;
    ``mode`` changes the permissions of all but symbolic links. Set the umask to 0 before.
    """

    def __init__(self, root: int, owner: Owner | None, mode: Mode | None) -> None:
        self._root = root
        self._owner = owner
        self._mode = mode
        self._links: dict[tuple[int, int], str] = {}

    def is_directory(self, path: str) -> bool:
        """Whether ``path`` leads to a directory."""
        try:
            os.close(libc.openat2(self._root, path, os.O_PATH | os.O_DIRECTORY, _IN_ROOT))
        except OSError:
            return False
        return True

    def make_directories(self, path: str) -> None:
        """Make ``path`` and what lacks above it.

        Raises:
            ImageError: something else is in the way.
        """
        with self._explaining(path), self._directory(path):
            pass

    def directory(self, path: str, looks: Looks, *, keep: bool) -> bool:
        """Make a directory; one that exists (be it by a link) gets the looks too, unless ``keep``.

        Return whether it was made.
        """
        with self._explaining(path), self._parent(path) as (parent, name):
            made = True
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                made = False
            with self._directory(path) as fd:
                if made or not keep:
                    self._adorn(f"/proc/self/fd/{fd}", looks)
            return made

    def settle(self, path: str, mtime_ns: int) -> None:
        """Give a directory its time, once nothing is written into it any more."""
        with self._explaining(path), self._directory(path) as fd:
            os.utime(f"/proc/self/fd/{fd}", ns=(mtime_ns, mtime_ns))

    def file(self, path: str, looks: Looks, chunks: Iterable[bytes | memoryview | int]) -> None:
        """Write a file in place of what is there, unless that is a directory; a number is the length of a hole."""
        with self._explaining(path), self._vacant(path) as (parent, name):
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
            try:
                for chunk in chunks:
                    if isinstance(chunk, int):
                        os.ftruncate(fd, os.lseek(fd, chunk, os.SEEK_CUR))
                        continue
                    view = memoryview(chunk)
                    while view:
                        view = view[os.write(fd, view) :]
                self._adorn(f"/proc/self/fd/{fd}", looks)
            finally:
                os.close(fd)

    def symlink(self, path: str, target: str, looks: Looks) -> None:
        """Make a symbolic link, whatever it points at."""
        with self._explaining(path), self._vacant(path) as (parent, name):
            os.symlink(target, name, dir_fd=parent)
            os.chown(name, *(self._owner or looks.owner), dir_fd=parent, follow_symlinks=False)
            os.utime(name, ns=(looks.mtime_ns, looks.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def hard_link(self, path: str, first: str) -> None:
        """Make ``path`` another name of ``first``, which lies below the root as well."""
        with self._explaining(path), self._parent(first) as (source, old):
            status = os.stat(old, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                raise ImageError(
                    f"{path!r} cannot be another name of the directory {first!r}",
                    hint="unpack the archive yourself and COPY what is needed",
                )
            with self._parent(path) as (parent, name):
                if _is_same(parent, name, status):
                    return
            with self._vacant(path) as (parent, name):
                os.link(old, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

    def node(self, path: str, looks: Looks, device: tuple[int, int]) -> None:
        """Make a device or a named pipe."""
        with self._explaining(path), self._vacant(path) as (parent, name):
            os.mknod(name, looks.mode, os.makedev(*device), dir_fd=parent)
            self._adorn(f"/proc/self/fd/{parent}/{name}", looks)

    def _adorn(self, real: str, looks: Looks) -> None:
        os.chown(real, *(self._owner or looks.owner))
        os.chmod(real, self._mode(looks.mode) if self._mode else stat.S_IMODE(looks.mode))
        for name, value in looks.xattrs.items():
            os.setxattr(real, name, value)
        os.utime(real, ns=(looks.mtime_ns, looks.mtime_ns))

    @contextmanager
    def _vacant(self, path: str) -> Iterator[tuple[int, str]]:
        """As ``_parent``, with what is in the way removed."""
        with self._parent(path) as (parent, name):
            try:
                os.unlink(name, dir_fd=parent)
            except FileNotFoundError:
                pass
            except IsADirectoryError as error:
                raise ImageError(
                    f"{path!r} is a directory in the image and no file can replace it", hint="end the target with /"
                ) from error
            yield parent, name

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        above, name = posixpath.split(path)
        with self._directory(above) as fd:
            yield fd, name or "."

    @contextmanager
    def _directory(self, path: str) -> Iterator[int]:
        fd = self._open_or_make(path)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open_or_make(self, path: str, links: int = 0) -> int:
        """A link that leads nowhere is followed too: what it names is made."""
        try:
            return libc.openat2(self._root, path or ".", os.O_PATH | os.O_DIRECTORY, _IN_ROOT)
        except FileNotFoundError:
            above, name = posixpath.split(path.rstrip("/"))
        parent = self._open_or_make(above, links)
        try:
            os.mkdir(name, _PARENT_MODE, dir_fd=parent)
            os.chown(name, *(self._owner or (0, 0)), dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            if links == _MAX_LINKS:
                raise
            return self._open_or_make(posixpath.join(above, os.readlink(name, dir_fd=parent)), links + 1)
        finally:
            os.close(parent)
        return libc.openat2(self._root, path, os.O_PATH | os.O_DIRECTORY, _IN_ROOT)

    @contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HostError(
                    f"no space is left for {path!r}", hint="free some, or set ISOMARK_STATE to a larger disk"
                ) from error
            hint = _HINTS.get(error.errno or 0, "look at what the image has there")
            raise ImageError(f"cannot write {path!r} in the image: {error.strerror}", hint=hint) from error


_HINTS: Final = {
    errno.ENOTDIR: "a part of the path is no directory in the image",
    errno.EEXIST: "something else is there, or a link that leads nowhere",
    errno.ELOOP: "symbolic links of the image lead in a circle",
    errno.ENAMETOOLONG: "a name has at most 255 bytes",
    errno.EPERM: "device nodes and owners need root",
}


def _is_same(parent: int, name: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), status)
    except FileNotFoundError:
        return False
