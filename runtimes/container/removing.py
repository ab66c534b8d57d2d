"""Removing a cgroup whatever is in it: frozen, forking, nested. Light."""

from __future__ import annotations

import errno
import os
import time

from bench.errors import HostError
from runtimes.container.hierarchy import OUR_GROUP, read, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

    from runtimes.container.hierarchy import Layout

REMOVE_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.0005
_SIGKILL: Final = 9
_STAYS: Final = (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.EROFS)
"""Somebody else has a group in it, or it is somebody else's."""


def remove_group(layout: Layout, name: str) -> None:
    """Kill everything in the group ``name`` and remove it; idempotent. For who knows the layout, which takes as long
    to read as all the rest.

    Raises:
        HostError: it does not go away.
    """  # noqa: D205
    left = [path for each in layout.hierarchies if not _is_gone(path := each.group(name))]
    if left:
        deadline = time.monotonic() + REMOVE_SECONDS
        _empty(left, deadline)
        for directory in left:
            for below in reversed(list(_walk(directory))):
                _rmdir(below, deadline)
    if "/" not in name:
        for hierarchy in layout.hierarchies:
            _rmdir_if_unused(f"{hierarchy.top}/{OUR_GROUP}")


def members_of(directories: Sequence[str]) -> list[int]:
    """The processes in groups and in those below, as the host numbers them."""
    found: dict[int, None] = {}
    for directory in directories:
        for group in _walk(directory):
            try:
                pids = read(f"{group}/cgroup.procs").split()
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENODEV):  # removed meanwhile
                    continue
                raise HostError(f"cannot read {group}: {error.strerror}") from error
            found |= dict.fromkeys(map(int, pids))
    return list(found)


def _is_gone(directory: str) -> bool:
    """Remove a group that is empty already, as most are."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        if not os.path.exists(directory):  # EROFS comes before ENOENT
            return True
        raise HostError(f"cannot remove cgroup {directory}: {error.strerror}") from error
    return True


def _empty(directories: Sequence[str], deadline: float) -> None:
    """Kill until nobody is left; a process in a frozen version 1 freezer ignores SIGKILL until it is thawed."""
    while pids := members_of(directories):
        if time.monotonic() > deadline:
            raise HostError(
                f"processes {pids} in cgroup {directories[0]} do not die",
                hint="/proc/PID/cgroup names their freezer group: echo THAWED > …/freezer.state; or reboot",
            )
        for directory in directories:
            _thaw(directory)
            if os.path.exists(f"{directory}/cgroup.kill"):  # version 2 since Linux 5.14
                _write(f"{directory}/cgroup.kill", b"1")
        for pid in pids:
            try:
                os.kill(pid, _SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(POLL_SECONDS)


def _thaw(directory: str) -> None:
    """Thaw the version 1 freezer group, its parent (the owner's) and those below."""
    for group in (os.path.dirname(directory), *_walk(directory)):
        state = f"{group}/freezer.state"
        if os.path.exists(state):
            _write(state, b"THAWED")


def _rmdir(directory: str, deadline: float) -> None:
    """Remove one group; the kernel says EBUSY until its last process is quite gone."""
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise HostError(f"cannot remove cgroup {directory}: {error.strerror}") from error
            time.sleep(POLL_SECONDS)
        else:
            return


def _rmdir_if_unused(directory: str) -> None:
    """Remove isomark's own top group, unless another run has a group in it."""
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno not in _STAYS:
            raise HostError(f"cannot remove cgroup {directory}: {error.strerror}") from error


def _walk(directory: str) -> Iterator[str]:
    """``directory`` and all groups below it, parents first."""
    for path, _, _ in os.walk(directory):
        yield path


def _write(path: str, content: bytes) -> None:
    try:
        write(path, content)
    except FileNotFoundError:  # removed meanwhile
        return
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise HostError(f"cannot write {content.decode()!r} to {path}: {error.strerror}") from error
