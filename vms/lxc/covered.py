"""What a container is not to see of its host's /proc and /sys: what Docker hides or makes read-only, all hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Final

COVERED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/irq",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/cgroup",
)
"""moby, daemon/pkg/oci/defaults.go; and its cgroups, which libvirt mounts writable, limits and all."""


def paths(host: Path = Path("/")) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return those of them that this kernel has: files, and directories. libvirt cannot cover what is not there."""
    found = [path for path in COVERED if (host / path[1:]).exists()]
    directories = tuple(path for path in found if (host / path[1:]).is_dir())
    return tuple(path for path in found if path not in directories), directories
