"""A configuration to begin with, for ``isomark-oci spec``: the same as ``runc spec`` writes."""

from __future__ import annotations

import os

from bench.errors import UsageError
from runtimes.ociruntime import documents
from runtimes.ociruntime.config import FILE, SPEC_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_CAPABILITIES: Final = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_MASKED: Final = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
)  # fmt: skip
_READONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_NOTHING: Final = ("nosuid", "noexec", "nodev")


def write(bundle: str, *, rootless: bool) -> None:
    """Write config.json into the directory ``bundle``.

    Raises:
        UsageError: there is one.
    """
    path = os.path.join(bundle, FILE)
    if os.path.lexists(path):
        raise UsageError(f"{path} exists", hint="remove it first")
    documents.replace(path, documents.pretty(document(rootless=rootless)).encode() + b"\n", 0o644)


def document(*, rootless: bool) -> dict[str, Any]:
    """A shell on a terminal, little privilege, a read-only root file system named rootfs."""
    namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
    linux: dict[str, Any] = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": name} for name in namespaces],
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READONLY),
    }
    if rootless:
        del linux["resources"]
        linux["namespaces"] = [{"type": name} for name in namespaces if name != "network"] + [{"type": "user"}]
        for name, own in (("uidMappings", os.geteuid()), ("gidMappings", os.getegid())):
            linux[name] = [{"containerID": 0, "hostID": own, "size": 1}]
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                name: list(_CAPABILITIES) for name in ("bounding", "effective", "permitted")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "isomark",
        "mounts": _mounts(rootless=rootless),
        "linux": linux,
    }  # fmt: skip


def _mounts(*, rootless: bool) -> list[dict[str, Any]]:
    group = [] if rootless else ["gid=5"]
    rows: list[tuple[str, str, str, list[str]]] = [
        ("/proc", "proc", "proc", []),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *group]),
        ("/dev/shm", "tmpfs", "shm", [*_NOTHING, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", [*_NOTHING]),
        ("/sys", "none", "/sys", ["rbind", *_NOTHING, "ro"])
        if rootless
        else ("/sys", "sysfs", "sysfs", [*_NOTHING, "ro"]),
    ]
    if not rootless:
        rows.append(("/sys/fs/cgroup", "cgroup", "cgroup", [*_NOTHING, "relatime", "ro"]))
    return [
        {"destination": path, "type": kind, "source": source, "options": options}
        for path, kind, source, options in rows
    ]
