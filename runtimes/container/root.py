"""What is mounted over a container's overlay, as operations of ``runtimes.mounts``."""

from __future__ import annotations

from typing import Any, Final

from runtimes import libc
from runtimes.devices import device_tree
from runtimes.driver import SCRATCH
from runtimes.mounts import NOTHING_EXECUTABLE

MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
PROTECTED: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""Docker's lists (moby, oci/defaults.go), except thermal_throttle, which is a file per CPU."""


def mounts(memory_bytes: int) -> list[list[Any]]:
    """The operations, in order, for a container with a memory limit of ``memory_bytes``."""
    return [
        *(["directory", path, mode] for path, mode in (("/proc", 0o555), ("/sys", 0o555), ("/dev", 0o755))),
        ["directory", SCRATCH, 0o1777],
        ["mount", "/proc", "proc", NOTHING_EXECUTABLE, None],
        ["mount", "/sys", "sysfs", NOTHING_EXECUTABLE | libc.MS_RDONLY, None],
        *device_tree(memory_bytes, bind=False, rootless=False),
        ["directory", "/dev/mqueue", 0o755],
        ["mount", "/dev/mqueue", "mqueue", NOTHING_EXECUTABLE, None],
        *(["hide", path] for path in MASKED),
        *(["protect", path] for path in PROTECTED),
    ]
