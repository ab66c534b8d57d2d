"""What is mounted over a container's overlay, as operations of ``runtimes.mounts``."""

from __future__ import annotations

from typing import Any

from runtimes import libc
from runtimes.devices import device_tree
from runtimes.driver import SCRATCH
from runtimes.mounts import NOTHING_EXECUTABLE
from runtimes.security.levels import Security


def mounts(memory_bytes: int, security: Security, scratch: str) -> list[list[Any]]:
    """The operations, in order, for a container with a memory limit of ``memory_bytes``.

    With a read-only root, what may be written is ``scratch``, a directory on the host, and /tmp and /run in memory;
    where the level is as strict as that, its device rules let nobody make a device, so they are bound.
    """
    sysfs = libc.MS_RDONLY if security.readonly else 0
    return [
        ["directory", SCRATCH, 0o1777],
        ["mount", "/proc", "proc", NOTHING_EXECUTABLE, None],
        ["mount", "/sys", "sysfs", NOTHING_EXECUTABLE | sysfs, None],
        *device_tree(memory_bytes, bind=security.read_only_root, rootless=False, queues=True),
        *([] if not security.read_only_root else _writable(scratch)),
        *([["hide", *security.masked]] if security.masked else []),
        *([["protect", *security.readonly]] if security.readonly else []),
    ]


def _writable(scratch: str) -> list[list[Any]]:
    return [
        ["directory", "/tmp", 0o1777],
        ["directory", "/run", 0o755],
        ["mount", "/tmp", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=1777"],
        ["mount", "/run", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=755"],
        ["bind", SCRATCH, scratch, 0, False],
    ]
