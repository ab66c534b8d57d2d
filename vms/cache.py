"""Files that outlive a run: complete or absent, whoever makes them and whenever that is killed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import HostError


def keep(directory: Path, name: str, make: Callable[[], bytes]) -> Path:
    """Return ``directory/name``; where it does not exist yet it holds what ``make`` returns.

    Raises:
        HostError: it cannot be written.
    """
    path = directory / name
    if path.exists():
        return path
    with making(path) as temporary:
        if temporary is not None:
            temporary.write_bytes(make())
    return path


@contextmanager
def making(path: Path, mode: int = 0o644) -> Iterator[Path | None]:
    """Offer a temporary name to write ``path`` under, or ``None`` if another process has made it meanwhile.

    One process at a time makes it. When the block ends well the file gets ``mode``, is flushed and takes its name;
    what a killed process left under the temporary name is overwritten by the next.

    Raises:
        HostError: the directory cannot be written, or is full.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            if path.exists():
                yield None
                return
            temporary.unlink(missing_ok=True)
            try:
                yield temporary
                _settle(temporary, path, mode)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise HostError(
            f"cannot write {path}: {error.strerror}", hint="set ISOMARK_STATE to a directory with space"
        ) from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of ``directory`` itself (flock(2)): nothing to clean up, released when its holder dies."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _settle(temporary: Path, path: Path, mode: int) -> None:
    """Flush ``temporary``, then give it its name, then flush the name (rename(2), fsync(2))."""
    temporary.chmod(mode)
    for name in (temporary, path.parent):
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if name is temporary:
            temporary.rename(path)
