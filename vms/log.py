"""What QEMU itself says: libvirt keeps its standard error in a file per domain name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

LOGS: Final = Path("/var/log/libvirt/qemu")
_LAST_BYTES: Final = 4096
_LAST_LINES: Final = 3


def last_words(name: str, logs: Path = LOGS) -> list[str]:
    """Return QEMU's own last lines about domain ``name``; see ``last_lines``."""
    return last_lines(
        name, logs, lambda line: "qemu-system" in line and "LC_ALL" not in line and "/usr/bin/" not in line
    )


def last_lines(name: str, logs: Path, is_meant: Callable[[str], bool]) -> list[str]:
    """Return the last three lines on domain ``name`` in ``logs`` that ``is_meant``; none where there is no log."""
    try:
        data = (logs / f"{name}.log").read_bytes()[-_LAST_BYTES:]
    except OSError:
        return []
    return [line for line in data.decode("utf-8", "replace").splitlines() if is_meant(line)][-_LAST_LINES:]


def logs_of(address: str) -> Path:
    """Where the libvirt at ``address`` keeps the logs of its domains: one directory for each of its drivers."""
    return LOGS.with_name("lxc") if address.startswith("lxc") else LOGS


def remove_log(name: str, logs: Path = LOGS) -> None:
    """Delete the log of a domain that is gone: each trial has a name of its own, so nobody else would."""
    try:
        (logs / f"{name}.log").unlink(missing_ok=True)
    except PermissionError:  # not root: libvirt's to keep
        return
