"""The daemons that libvirt starts beside a QEMU, such as those of virtiofs: no children of it, but of its cgroup."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
_DOMAIN_GROUP: Final = re.compile(r"(machine-)?(qemu|lxc)(-|\\x2d)\d+(-|\\x2d)")
_SHARES: Final = b"vhost-user-fs"
"""On the command line of a QEMU that has such a daemon."""


def helpers(pid: int, cgroups: Path = CGROUPS, proc: Path = Path("/proc")) -> list[int]:
    """The other processes in the cgroups that libvirt made for the domain of QEMU ``pid``; none without such groups.

    Raises:
        FileNotFoundError, ProcessLookupError: it ended.
    """
    found: set[int] = set()  # of version 1 not every hierarchy has them all
    for line in (proc / str(pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        group = domain_group(path)
        # version 2 is mounted on its own, or beside version 1 where that has the controllers
        for root in (cgroups / controllers,) if controllers else (cgroups / "unified", cgroups):
            if group is not None and (root / group).is_dir():
                found |= _members(root / group)
    return sorted(found - {pid})


def domain_group(path: str) -> PurePosixPath | None:
    """The part of a process's cgroup ``path`` that is a domain's: machine/qemu-1-NAME.libvirt-qemu, or systemd's scope.

    ``None`` where libvirt made it no group of its own.
    """
    whole = PurePosixPath(path.lstrip("/"))
    return next((group for group in (whole, *whole.parents) if _DOMAIN_GROUP.match(group.name)), None)


def is_sharing(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether QEMU ``pid`` shares a directory of the host, so that it must have a helper.

    Raises:
        FileNotFoundError, ProcessLookupError: it ended.
    """
    return _SHARES in (proc / str(pid) / "cmdline").read_bytes()


def _members(group: Path) -> set[int]:
    """The processes of ``group`` and all below; a threaded group (version 2) has none beside its parent's."""
    members: set[int] = set()
    for procs in (group / "cgroup.procs", *group.rglob("cgroup.procs")):
        try:
            members |= set(map(int, procs.read_text().split()))
        except OSError:  # threaded, or gone
            continue
    return members
