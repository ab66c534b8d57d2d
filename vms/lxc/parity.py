"""What a container of libvirt differs in from the built-in one, for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Final

PARITY: Final = (
    "Its CPU limit is a quota on all CPUs of the host",
    "The limit on disk space is not enforced, and none on processes: libvirt has no such limit",
    "lxc: no system call is filtered and set-user-ID programs work, which the container's profile forbids; "
    "the capabilities are the same",
    "lxc: libvirt's controller process and a small init are part of each container, and of its memory",
    "lxc: it is in the host's cgroup namespace; /sys/fs/cgroup is empty inside, and /proc/meminfo shows its limit",
)
_SWAPPING: Final = (
    "lxc: beside its memory it may use as much swap, because libvirt limits both together in version 1 only"
)
_VERSION_1: Final = Path("/sys/fs/cgroup/memory")


def limits(version_1: Path = _VERSION_1) -> str:
    """What is limited, and how; ``version_1`` is where that has its memory controller."""
    return f"cpus by quota, memory {'without swap' if version_1.is_dir() else 'and as much swap'}"


def parity(version_1: Path = _VERSION_1) -> list[str]:
    """Return a sentence for each difference."""
    return [*PARITY, *([] if version_1.is_dir() else [_SWAPPING])]
