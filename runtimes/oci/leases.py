"""What keeps the collector from blobs that are in use but that no reference names yet.

Every process that writes or relies on blobs holds a lease: a file below ``leases/`` that lists digests and
that is locked by its owner for as long as it lives, so that a lease dies with its process. Noting a digest
and making a blob visible happen under ``gc.lock`` shared; the collector marks and sweeps under it exclusively.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Leases:
    """The leases of the store at ``root``, and this object's own, taken when first needed."""

    def __init__(self, root: Path) -> None:
        self._lock = root / "gc.lock"
        self._directory = root / "leases"
        self._fd: int | None = None
        self._noted: set[str] = set()
        self._one = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep the collector out for the length of a (short) block."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep out everybody who notes digests or makes blobs visible."""
        with self._locked(fcntl.LOCK_EX):
            yield

    def note(self, digests: Iterable[str]) -> None:
        """Keep ``digests`` until this object, or its process, is gone; call inside ``shared``."""
        with self._one:
            new = [digest for digest in digests if digest not in self._noted]
            if not new:
                return
            if self._fd is None:
                self._fd = self._open()
            data = "".join(f"{digest}\n" for digest in new).encode()
            while data:
                data = data[os.write(self._fd, data) :]
            self._noted.update(new)

    def live(self) -> set[str]:
        """The digests that somebody keeps; files of the dead are removed. Call inside ``exclusive``."""
        kept: set[str] = set(self._noted)
        for path in self._directory.iterdir():
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:  # given up just now
                continue
            with os.fdopen(fd) as file:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                except BlockingIOError:
                    kept.update(file.read().split())
        return kept

    def _open(self) -> int:
        path = self._directory / secrets.token_hex(8)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        fcntl.flock(fd, fcntl.LOCK_EX)
        weakref.finalize(self, _end, fd, path, os.getpid())
        return fd

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)


def _end(fd: int, path: Path, owner: int) -> None:
    """Give up a lease; a forked child only lets go of its copy of the lock."""
    if os.getpid() == owner:
        path.unlink(missing_ok=True)
    os.close(fd)
