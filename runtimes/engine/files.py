"""Small files written whole, and trees removed whatever is in them."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from bench.errors import HostError
from runtimes import usernamespace
from runtimes.engine import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


DRAFT = ".new"


class Damaged(HostError):
    """A record on disk is not what was written."""


def write_whole(path: str, data: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """Put ``data`` at ``path``: a reader sees the old or the new content, whole.

    Raises:
        OSError: it cannot be written; the old content is still there.
    """
    temporary = f"{path}.{os.getpid()}{DRAFT}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def sweep_drafts(directory: str, prefix: str = "") -> None:
    """Delete what a ``write_whole`` that was killed left. The caller keeps others from writing there."""
    for name in os.listdir(directory):
        if name.startswith(prefix) and name.endswith(DRAFT):
            os.unlink(f"{directory}/{name}")


def read_json(path: str, remedy: str = "") -> dict[str, Any] | None:
    """The JSON object at ``path``; ``None`` if there is no such file. ``remedy`` is the hint if it is damaged.

    Raises:
        Damaged: it is.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value = text.loads(content.decode())
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}", hint=remedy) from error
    if not isinstance(value, dict):
        raise Damaged(f"{path} is damaged: it is no JSON object", hint=remedy)
    return value


def remove_tree(path: str) -> None:
    """Delete ``path`` and all below it, however deep, following nothing and staying on its file system.

    Raises:
        HostError: something in it cannot be deleted.
    """
    try:
        try:
            _remove(path)
        except PermissionError:  # an ordinary user's container has files of subordinate ids, and closed directories
            if usernamespace.privileged():
                raise
            usernamespace.within(lambda: _remove(path))
    except OSError as error:
        raise HostError(
            f"cannot remove {error.filename or path}: {error.strerror}",
            hint="lsattr -R may show an immutable file, findmnt something still mounted there",
        ) from error


def _remove(path: str) -> None:
    try:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):  # somebody put a file or a link there
            os.unlink(path)
            return
        _remove_entries(path, found.st_dev)
        os.rmdir(path)
    except FileNotFoundError:
        return


def _remove_entries(path: str, device: int) -> None:
    """Empty directory ``path``. What is deep is moved up first, so that no path grows too long for the kernel."""
    while directories := _remove_files(path, device):
        for name in directories:
            below = f"{path}/{name}"
            for deeper in _remove_files(below, device):
                os.rename(f"{below}/{deeper}", f"{path}/.{os.urandom(12).hex()}")
            os.rmdir(below)


def _remove_files(path: str, device: int) -> list[str]:
    """Delete what is no directory in ``path`` and return the names of the directories.

    A directory of another file system is a mount that should not be there, and nothing in it is touched.
    """
    directories = []
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
            elif entry.stat(follow_symlinks=False).st_dev != device:
                raise OSError(errno.EBUSY, "another file system is mounted there", entry.path)
            else:
                directories.append(entry.name)
    return directories


def is_locked(path: str, flags: int) -> bool:
    """Whether somebody who lives holds the lock of ``path``, opened with ``flags``; what is not there is not locked."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
