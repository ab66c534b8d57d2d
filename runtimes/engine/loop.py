"""Waiting for many descriptors and instants at once, on poll(2)."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.POLLIN
WRITE = select.POLLOUT
GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Loop:
    """Calls back when a descriptor is ready or an instant has come."""

    __slots__ = ("_callbacks", "_poll", "_timers")

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback`` with the events on ``fd``, until ``forget``; again with other events to change them."""
        self._poll.register(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Watch ``fd`` no more; to be called before it is closed. Idempotent."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def at(self, monotonic_seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, at that instant or soon after."""
        self._timers.append((monotonic_seconds, callback))
        self._timers.sort(key=_when)

    def cancel(self, callback: Callable[[], None]) -> None:
        """Take back an ``at``."""
        self._timers = [timer for timer in self._timers if timer[1] != callback]

    def run(self, done: Callable[[], bool]) -> None:
        """Wait and call back until ``done`` says so."""
        while not done():
            timeout = None
            if self._timers:
                timeout = max(0.0, (self._timers[0][0] - time.monotonic()) * 1000 + 1)
            for fd, events in self._poll.poll(timeout):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    callback(events)
            while self._timers and self._timers[0][0] <= time.monotonic():
                _, due = self._timers.pop(0)
                due()


def _when(timer: tuple[float, object]) -> float:
    return timer[0]
