"""Blobs on their way into the store: written aside, hashed as they come, and resumed after a kill."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.errors import ImageError
from runtimes.oci.descriptor import Descriptor

_CHUNK_BYTES: Final = 1024**2
_POLL_SECONDS: Final = 0.02
_ANOTHER: Final = "it was damaged on its way, or the other side is malicious; nothing of it was kept"


class StoreFull(ImageError):
    """No space is left for the store."""


class BlobWriter:
    """Takes the bytes of one blob; ``Layout.writing`` makes it visible under its digest."""

    def __init__(self, fd: int, root: Path) -> None:
        self.size = 0
        self._fd = fd
        self._root = root
        self._hash = Descriptor("", "sha256:", 0).hasher()

    @property
    def digest(self) -> str:
        """The digest of what was written so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes) -> None:
        """Append ``data``.

        Raises:
            ImageError: no space is left.
        """
        self._hash.update(data)
        self.size += len(data)
        write_all(self._fd, data, self._root)


class Partial:
    """A blob of known digest and size, of which ``offset`` bytes are here; ``Layout.fetching`` makes it visible."""

    def __init__(self, fd: int, descriptor: Descriptor, root: Path) -> None:
        self.descriptor = descriptor
        self.offset = 0
        self.restarts = 0
        self.fd = fd
        self._root = root
        self._hash = descriptor.hasher()
        self._recall()

    def write(self, data: bytes) -> None:
        """Append ``data``.

        Raises:
            ImageError: that would be more than the blob has, or no space is left.
        """
        if self.offset + len(data) > self.descriptor.size:
            self.restart()
            raise ImageError(
                f"more bytes came than the {self.descriptor.size} of blob {self.descriptor.digest}", hint=_ANOTHER
            )
        write_all(self.fd, data, self._root)
        self._hash.update(data)
        self.offset += len(data)

    def restart(self) -> None:
        """Forget what came so far."""
        self.restarts += 1
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        self.offset, self._hash = 0, self.descriptor.hasher()

    @property
    def is_right(self) -> bool:
        """Whether what came so far is the whole blob."""
        return self.offset == self.descriptor.size and self._hash.hexdigest() == self.descriptor.hex

    def verify(self) -> None:
        """Check that the blob is whole and right.

        Raises:
            ImageError: it is not.
        """
        if self.offset != self.descriptor.size:
            raise ImageError(
                f"blob {self.descriptor.digest} ended after {self.offset} of {self.descriptor.size} bytes",
                hint=_ANOTHER,
            )
        if not self.is_right:
            raise ImageError(f"what came is not blob {self.descriptor.digest}: its digest is another", hint=_ANOTHER)

    def _recall(self) -> None:
        """Take in what an earlier attempt left: after a power cut it may be anything, so all of it is hashed."""
        while data := os.read(self.fd, _CHUNK_BYTES):
            self.offset += len(data)
            self._hash.update(data)
        if self.offset > self.descriptor.size or (self.offset == self.descriptor.size and not self.is_right):
            self.restart()


def locked_partial(path: Path, waiting: Callable[[], None] = lambda: None) -> int:
    """Open and lock ``path``, waiting for whoever else has it; the lock goes with the descriptor.

    ``waiting`` is called again and again meanwhile; what it raises ends the wait.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while not _try_lock(fd):
                waiting()
                time.sleep(_POLL_SECONDS)
            if _is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the one before us finished: it was renamed or removed


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sweep(directory: Path, pattern: str = "*") -> None:
    """Remove what writers left that no longer live: a live one holds the lock on its file."""
    for path in directory.glob(pattern):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            if _try_lock(fd) and _is_at(fd, path):
                path.unlink()
        finally:
            os.close(fd)


def write_all(fd: int, data: bytes, root: Path) -> None:
    """Write all of ``data`` to ``fd``, a file of the store at ``root``.

    Raises:
        ImageError: no space is left.
    """
    view = memoryview(data)
    with storing(root):
        while view:
            view = view[os.write(fd, view) :]


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def storing(root: Path) -> Iterator[None]:
    """Turn what the file system refuses into an ImageError with its remedy."""
    try:
        yield
    except OSError as error:
        kind = ImageError
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            kind, hint = StoreFull, "free some disk space, or set ISOMARK_STATE to a larger disk"
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            hint = "raise the limit on open files: ulimit -n"
        else:
            hint = "set ISOMARK_STATE to a directory that you may write"
        raise kind(f"cannot write the image store {root}: {error.strerror}", hint=hint) from error


def _is_at(fd: int, path: Path) -> bool:
    """Whether the open file ``fd`` is still what ``path`` names."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
