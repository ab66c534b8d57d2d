"""libvirt's controller process, of which each container has one, and what it needs on a host with both cgroup versions.

It mounts the host's cgroups for the container, each where the host has it, and version 2 first. Where version 2 is
mounted beside version 1 that is a directory like /sys/fs/cgroup/unified, which the container's sysfs has not and lets
nobody make: "Unable to create directory /sys/fs/cgroup/unified" (libvirt 9.0, virCgroupV2BindMount). Unmounting it
does not help, because libvirtd then does not find the container's group. So in a mount namespace of its own the
controller gets it on a directory that every sysfs has, and that is covered in the container anyway.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Final

from vms.cache import keep

MOUNTS: Final = Path("/proc/self/mounts")
SHELTER: Final = "/sys/firmware"
"""Firmware tables, which Docker hides from its containers too."""
_SYSFS_HAS: Final = "/sys/fs/cgroup"


def controller(emulator: str, state: Path, mounts: Path = MOUNTS) -> Path:
    """Return libvirt's ``emulator``, or a script in ``state/lxc`` that executes it where it finds its way.

    Raises:
        HostError: the script cannot be written.
    """
    misplaced = misplaced_cgroups(mounts)
    if misplaced is None:
        return Path(emulator)
    content = _script(emulator, misplaced)
    digest = hashlib.sha256(content).hexdigest()[:16]
    path = keep(state / "lxc", f"libvirt_lxc-{digest}", lambda: content)
    path.chmod(0o755)
    return path


def misplaced_cgroups(mounts: Path = MOUNTS) -> str | None:
    """Where cgroups of version 2 are mounted, if libvirt takes them for usable and a container cannot have them there.

    libvirt passes over a hierarchy without controllers, as systemd's hybrid one is (virCgroupV2Available).
    """
    for line in mounts.read_text(errors="surrogateescape").splitlines():
        _, point, kind, *_ = line.split(" ")
        if kind == "cgroup2" and point != _SYSFS_HAS and Path(point, "cgroup.controllers").read_text().strip():
            return point
    return None


def _script(emulator: str, misplaced: str) -> bytes:
    inner = f'mount --move {shlex.quote(misplaced)} {SHELTER} && exec {shlex.quote(emulator)} "$@"'
    return (
        f'#!/bin/sh\nexec unshare --mount --propagation slave /bin/sh -c {shlex.quote(inner)} libvirt_lxc "$@"\n'
    ).encode()
