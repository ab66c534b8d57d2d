"""Whether another user may open a file: libvirt's, which QEMU runs as."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from vms.connection import User


def may_use(path: Path, user: User, wanted: int) -> bool:
    """Whether the permission bits let ``user`` do ``wanted`` (os.R_OK | os.W_OK | os.X_OK) with ``path``.

    Raises:
        OSError: ``path`` is not there.
    """
    status = path.stat()
    if user.uid == 0:
        return True
    if status.st_uid == user.uid:
        return status.st_mode >> 6 & wanted == wanted
    if status.st_gid in _groups(user):
        return status.st_mode >> 3 & wanted == wanted
    return status.st_mode & wanted == wanted


def blocked_directory(path: Path, user: User) -> Path | None:
    """The first directory on the way down to ``path`` that ``user`` may not enter, ``None`` if all are open."""
    ways = [*reversed(path.absolute().parents), path]
    return next((way for way in ways if stat.S_ISDIR(way.stat().st_mode) and not may_use(way, user, os.X_OK)), None)


def _groups(user: User) -> set[int]:
    """Its own group and those it was put into (initgroups(3), as libvirt does)."""
    try:
        name = pwd.getpwuid(user.uid).pw_name
    except KeyError:
        return {user.gid}
    return set(os.getgrouplist(name, user.gid))
