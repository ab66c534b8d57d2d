"""Domains whose QEMU is dead and which libvirt has yet to forget.

libvirt waits until process 1 has reaped a dead QEMU: at once under systemd, a second or two where
process 1 is slow at it. Trials need not wait for that; the end of the run does.
"""

from __future__ import annotations

import time
from typing import Final

from bench.errors import DriverUnavailable, HostError
from vms.connection import Connection, Watch
from vms.life import find
from vms.log import logs_of, remove_log

FORGET_SECONDS: Final = 10.0


class Graveyard:
    """Collects dead domains; ``close`` waits until libvirt has forgotten them all, and removes their logs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._dead: dict[str, Watch] = {}

    def add(self, uuid: str, name: str) -> None:
        """Take in a domain whose process is dead; asking libvirt about it now would only wait with libvirt."""
        self._dead[name] = self._connection.watch(uuid)

    def close(self) -> None:
        """Wait, within limits, until libvirt has told the end of every one; idempotent."""
        deadline = time.monotonic() + FORGET_SECONDS
        for name, watch in self._dead.items():
            if not watch.ended.is_set() and self._is_known(watch.uuid):
                watch.ended.wait(max(0.0, deadline - time.monotonic()))
            self._connection.forget(watch)
            remove_log(name, logs_of(self._connection.address))
        self._dead.clear()

    def _is_known(self, uuid: str) -> bool:
        try:
            return find(self._connection, uuid) is not None
        except (DriverUnavailable, HostError):  # no libvirtd that could know it
            return False
