"""libvirt's event loop: one thread for the whole process, there as long as somebody holds it.

Without it libvirt neither tells of a domain's end, nor notices that a remote host is gone, nor keeps a console
stream alive. It must be registered before the first connection is opened, so ``hold`` comes first.
"""

from __future__ import annotations

import threading

_LAST_TURNS = 3
"""A closed connection's descriptors go a turn after its watches, and those a turn after it."""


class EventLoop:
    """Runs while it is held; ``release`` by the last holder ends the thread and waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._registered = False
        self._running = False
        self._thread: threading.Thread | None = None

    def hold(self) -> None:
        """Make sure that it runs until released."""
        import libvirt

        with self._lock:
            if not self._registered:
                libvirt.virEventRegisterDefaultImpl()
                self._registered = True
            self._holders += 1
            if self._holders == 1:
                self._running = True
                self._thread = threading.Thread(target=self._run, name="libvirt events", daemon=True)
                self._thread.start()

    def release(self) -> None:
        """Give back one hold; what closed connections left to the loop is done before the last one returns."""
        with self._lock:
            self._holders -= 1
            if self._holders or self._thread is None:
                return
            self._running = False
            _wake()
            self._thread.join()
            self._thread = None
            for _ in range(_LAST_TURNS):
                _wake()
                _turn()

    def _run(self) -> None:
        while self._running:
            _turn()


LOOP = EventLoop()


def _turn() -> None:
    import libvirt

    libvirt.virEventRunDefaultImpl()


def _wake() -> None:
    """Let the present turn of the loop end now."""
    import libvirt

    libvirt.virEventAddTimeout(0, _forget, None)


def _forget(timer: int, _: object) -> None:
    import libvirt

    libvirt.virEventRemoveTimeout(timer)
