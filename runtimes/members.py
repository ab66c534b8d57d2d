"""Which processes belong to an instance: those in its namespace, whatever session or parent they have.

A bare process has a mount namespace of its own, and nothing that it forks can leave it by accident:
unlike a process group or a session it survives daemonising. Imported by the sandbox helper, so light.
"""

from __future__ import annotations

import _signal
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SURE_LOOKS: Final = 5
"""A process may fork after /proc was listed and exit before it is looked at: none is left for sure if nobody on the
host forked meanwhile. On a host where somebody always does, so many looks without a find must do."""


class Namespace:
    """A namespace held open, so that its inode number cannot be given to another one meanwhile."""

    def __init__(self, pid: int, kind: str) -> None:
        """Hold namespace ``kind`` (``"mnt"``, ``"pid"``) of process ``pid``.

        Raises:
            OSError: the process is gone.
        """
        self._kind = kind
        self._fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        self._inode = os.fstat(self._fd).st_ino

    def members(self) -> list[int]:
        """The live processes in it; a zombie has left its namespaces already."""
        wanted = f"{self._kind}:[{self._inode}]"
        return [pid for pid in processes() if _namespace_of(pid, self._kind) == wanted]

    def kill(self, timeout_seconds: float) -> bool:
        """Kill every member until none is left; return whether that took less than ``timeout_seconds``."""
        deadline = time.monotonic() + timeout_seconds
        empty_looks = 0
        while empty_looks < SURE_LOOKS:
            newest = _newest_pid()
            members = self.members()
            if not members and _newest_pid() == newest:
                return True
            empty_looks = 0 if members else empty_looks + 1
            if time.monotonic() > deadline:
                return False
            for pid in members:
                try:
                    os.kill(pid, _signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.001)
        return True

    def close(self) -> None:
        """Let go of the namespace; idempotent."""
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1


def processes() -> list[int]:
    """Every process id that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _newest_pid() -> str:
    """The process id given out last (proc(5), loadavg)."""
    with open("/proc/loadavg") as loadavg:
        return loadavg.read().split()[4]


def _namespace_of(pid: int, kind: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:  # gone, a zombie, or somebody else's
        return None
