"""What a host must have to share directories with its guests by virtiofs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench.errors import DriverUnavailable
from vms.options import DomainOptions

DESCRIPTIONS: Final = (Path("/usr/share/qemu/vhost-user"), Path("/etc/qemu/vhost-user"))
"""Where libvirt looks for daemons (QEMU, docs/interop/vhost-user.json); a name in the latter hides the former's."""


def require_sharing(options: DomainOptions, descriptions: Sequence[Path] = DESCRIPTIONS) -> None:
    """Check that this host can share the directories that ``options`` name, if they do.

    Raises:
        DriverUnavailable: there is no virtiofsd, no such directory, or a shared root may not be mounted.
    """
    if not options.shares_memory:
        return
    if not any(os.access(daemon, os.X_OK) for daemon in _daemons(descriptions)):
        raise DriverUnavailable(
            f"no virtiofsd is described in {' or '.join(map(str, descriptions))}",
            hint="script/bootstrap, or: apt-get install virtiofsd (Debian 12: qemu-system-common)",
        )
    if options.root == "virtiofs" and os.geteuid() != 0:
        raise DriverUnavailable("a shared root is mounted by root only", hint='run as root; root = "disk" needs none')
    if options.virtiofs is not None and not os.path.isdir(options.virtiofs):  # Path's raises where one may not look
        raise DriverUnavailable(
            f"there is no directory {options.virtiofs} to share", hint="make it, or change the option virtiofs"
        )


def _daemons(folders: Sequence[Path]) -> Iterator[str]:
    """The programs that serve file systems; an empty description only hides another."""
    described = {file.name: file for folder in folders for file in folder.glob("*.json")}
    for file in described.values():
        try:
            told = json.loads(file.read_bytes() or b"{}")
        except ValueError:  # libvirt does not understand it either
            continue
        if told.get("type") == "fs":
            yield str(told["binary"])
