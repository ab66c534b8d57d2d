"""The user's side of an attached container: output to the command's own, input and signals to the container."""

from __future__ import annotations

import _signal
import os
import select

from runtimes.engine import text, wire
from runtimes.engine.terminal import KeyWatch, Raw, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 - a class
    from types import FrameType
    from typing import Any

PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCONT")
ENDED = "ended"
DETACHED = "detached"
UNREAD = "unread"
LOST = "lost"
_TARGETS = {wire.STDOUT: 1, wire.STDERR: 2}


def mask_signals() -> set[int]:
    """Hold back what will be passed on, around a fork; returns the former mask."""
    numbers = [getattr(_signal, name) for name in PASSED_ON]
    former: set[int] = _signal.pthread_sigmask(_signal.SIG_BLOCK, numbers)
    return former


class Attachment:
    """One attached container.

    Attributes:
        outcome: ``ENDED``, ``DETACHED`` by keys, ``UNREAD`` because nobody reads our output any more, or ``LOST``
            because the monitor is gone.
        answer: The message that ended it: JSON of wire.ENDED or wire.FAILED.
        failed: Whether it was the latter.
        times: JSON of wire.STARTED.
    """

    def __init__(
        self, connection: Socket, *, gives_input: bool, tty: bool, keys: bytes, pass_signals: bool, quiet: bool = False
    ) -> None:
        self.outcome = ""
        self.answer: dict[str, Any] = {}
        self.failed = False
        self.started = False
        self.times: dict[str, list[tuple[str, float]]] = {}
        self._connection = connection
        self._gives_input = gives_input
        self.tty = tty
        self._keys = KeyWatch(keys if tty else b"")
        self._pass_signals = pass_signals
        self._quiet = quiet
        self._poll = select.poll()

    def watch_signals(self, former_mask: set[int]) -> None:
        """Pass signals on from now on, also those that came since ``mask_signals``."""
        if self._pass_signals:
            for name in PASSED_ON:
                _signal.signal(getattr(_signal, name), self._pass_on)
        if self.tty:
            _signal.signal(_signal.SIGWINCH, self._resize)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, former_mask)

    def run(self) -> str:
        """Relay until the container ends or is left; returns ``outcome``."""
        self._poll.register(self._connection, select.POLLIN)
        if not self._gives_input or not self.tty:
            self._relay()
            return self.outcome
        with Raw(0):
            self._resize(0, None)
            self._relay()
        return self.outcome

    def await_start(self) -> None:
        """Wait until the command runs, or it is known that it does not."""
        while not self.started and not self.outcome:
            self._hear()
        self._connection.close()

    def _relay(self) -> None:
        if self._gives_input:
            self._poll.register(0, select.POLLIN)
        while not self.outcome:
            for fd, _ in self._poll.poll():
                if fd == 0:
                    self._read_input()
                else:
                    self._hear()
                if self.outcome:
                    return

    def _hear(self) -> None:
        kind, body = wire.receive(self._connection)
        if kind in _TARGETS:
            if not self._quiet and not write_all(_TARGETS[kind], body):
                self.outcome = UNREAD
        elif kind == wire.TAKEN:
            self._poll.register(0, select.POLLIN)
        elif kind in (wire.ENDED, wire.FAILED):
            self.answer = text.loads(body.decode())
            self.failed = kind == wire.FAILED
            self.outcome = ENDED
        elif kind == wire.STARTED:
            self.started = True
            self.times = text.loads(body.decode()) if body else {}
        elif not kind:
            self.outcome = LOST

    def _read_input(self) -> None:
        try:
            data = os.read(0, wire.MAX_CHUNK)
        except BlockingIOError:
            return
        except OSError:  # the terminal hung up, or it is not ours to read
            data = b""
        self._poll.unregister(0)  # until what was read has been taken
        passed = self._keys.feed(data)
        if not data:
            self._send(wire.CLOSE_INPUT, b"")
        elif passed:
            self._send(wire.INPUT, passed)
        else:
            self._poll.register(0, select.POLLIN)
        if self._keys.found:
            self.outcome = DETACHED

    def _send(self, kind: bytes, value: object) -> None:
        try:
            wire.send(self._connection, kind, value)
        except OSError:  # it is ending: the next word heard says so
            return

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._send(wire.SIGNAL, number)

    def _resize(self, _number: int, _frame: FrameType | None) -> None:
        found = size(0)
        if found is not None:
            self._send(wire.RESIZE, found)


def write_all(fd: int, data: bytes) -> bool:
    """Write all of ``data``, waiting where the descriptor does not; false if nobody reads."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(fd, select.POLLOUT)
            waiting.poll()
        except OSError:
            return False
    return True
