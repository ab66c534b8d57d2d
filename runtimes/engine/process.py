"""Telling a process apart from a later one that got the same number."""

from __future__ import annotations

import _signal
import os
import select


def boot_id() -> str:
    """The kernel's random id of this boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)): clock ticks from boot to the start of ``pid``; ``None`` if gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class Process:
    """A process by number and start: ``[pid, ticks, boot id]`` in JSON."""

    __slots__ = ("boot", "pid", "ticks")

    def __init__(self, pid: int, ticks: int, boot: str) -> None:
        self.pid = pid
        self.ticks = ticks
        self.boot = boot

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Process ``pid`` as it is now; ``None`` if there is none."""
        ticks = start_ticks(pid)
        return None if ticks is None else cls(pid, ticks, boot_id())

    @classmethod
    def read(cls, value: object) -> Process | None:
        """The process that was written as JSON ``value``; ``None`` for anything else."""
        return cls(*value) if isinstance(value, list) and len(value) == 3 else None

    def write(self) -> list[int | str]:
        """For JSON."""
        return [self.pid, self.ticks, self.boot]

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return start_ticks(self.pid) == self.ticks and boot_id() == self.boot

    def open(self) -> int | None:
        """A pidfd of that very process; ``None`` if it is gone."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.alive():  # looked at after the descriptor pinned it
            return fd
        os.close(fd)
        return None

    def kill(self, seconds: float = 5.0) -> bool:
        """Kill it and wait for its end; false if it has none within ``seconds``."""
        fd = self.open()
        if fd is None:
            return True
        try:
            _signal.pidfd_send_signal(fd, _signal.SIGKILL)
            return bool(select.select([fd], [], [], seconds)[0])
        except ProcessLookupError:
            return True
        finally:
            os.close(fd)

    def signal(self, number: int) -> bool:
        """Send a signal; false if the process is gone."""
        fd = self.open()
        if fd is None:
            return False
        try:
            _signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True
