"""The one channel between an instance and the trial: console lines in, commands out.

A driver hands over file descriptors (a pipe pair, a socket); reading, stamping, bounding and the
events that follow from lines happen here, in the same way for every driver.
"""

from __future__ import annotations

import os
import re
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from bench import protocol
from bench.errors import ConsoleFlood, ConsoleTimeout, InstanceError
from bench.model import Event, EventName, Line, Step

MAX_LINE_BYTES: Final = 4096
MAX_TOTAL_BYTES: Final = 16 * 1024**2
MAX_STEPS: Final = 64
"""A guest may claim any number of steps; these are kept."""
TAIL_LINES: Final = 80
"""A kernel panic with its trace is about 50, and its reason is the first of them."""

_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[0-Z\\-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Channel:
    """Reads an instance's console and writes to it; owns both descriptors.

    ``events`` and ``steps`` are in the order they were pushed. ``tail`` has the last lines, cleaned of control
    characters, each at most ``MAX_LINE_BYTES`` long: memory stays bounded whatever is printed. ``onlooker`` is told
    each line too, and must not wait.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.events: list[Event] = []
        self.steps: list[Step] = []
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.onlooker: Callable[[str], None] | None = None
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._poll = select.poll()
        self._poll.register(read_fd, select.POLLIN)
        self._pending: deque[Line] = deque()
        self._partial = b""
        self._skipping = False
        self._total = 0
        self._closed = False
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    def push(self, name: EventName, at_seconds: float | None = None) -> None:
        """Record event ``name``, now unless told otherwise; the first of its name stays."""
        if all(event.name != name for event in self.events):
            self.events.append(Event(name, time.monotonic() if at_seconds is None else at_seconds))

    def step(self, name: str, at_seconds: float | None = None) -> None:
        """Record that step ``name`` has begun, now unless told otherwise; the first of its name stays."""
        if len(self.steps) < MAX_STEPS and all(step.name != name for step in self.steps):
            self.steps.append(Step(name, time.monotonic() if at_seconds is None else at_seconds))

    def lines(self, timeout_seconds: float) -> Iterator[Line]:
        """Yield lines as they come until the console closes.

        Raises:
            ConsoleTimeout: ``timeout_seconds`` after the call the console is still open.
            ConsoleFlood: more than ``MAX_TOTAL_BYTES`` were printed.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            while self._pending:
                yield self._pending.popleft()
            if self._closed:
                return
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self._poll.poll(remaining * 1000):
                raise ConsoleTimeout(
                    f"no answer on the console within {timeout_seconds:g} s",
                    hint="the last console lines are in the trial's record; a slow host needs a longer time-out",
                    tail=self.tail,
                )
            self._fill()

    def send(self, text: str) -> None:
        """Write one line to the instance.

        Raises:
            InstanceError: the instance no longer reads its console.
        """
        data = text.encode() + b"\n"
        try:
            written = os.write(self._write_fd, data)
        except (BrokenPipeError, ConnectionResetError, BlockingIOError, OSError) as error:
            raise InstanceError(f"the instance does not read its console: {error}", tail=self.tail) from error
        if written != len(data):
            raise InstanceError("the instance does not read its console", tail=self.tail)

    def reconnect(self, read_fd: int, write_fd: int) -> None:
        """Go on with the console of the same instance's next start; what the old one still held is lost."""
        self.close()
        self._read_fd, self._write_fd = read_fd, write_fd
        self._poll = select.poll()
        self._poll.register(read_fd, select.POLLIN)
        self._partial, self._skipping, self._closed = b"", False, False
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    def close(self) -> None:
        """Close both descriptors; idempotent."""
        for fd in {self._read_fd, self._write_fd} - {-1}:
            os.close(fd)
        self._read_fd = self._write_fd = -1
        self._closed = True

    def _fill(self) -> None:
        try:
            data = os.read(self._read_fd, 65536)
        except BlockingIOError:
            return
        except OSError:  # a pty whose other end is gone answers EIO, a socket ECONNRESET
            data = b""
        now = time.monotonic()
        if not data:
            self._closed = True
            if self._partial and not self._skipping:
                self._take(self._partial, now)
            self._partial = b""
            return
        self._total += len(data)
        if self._total > MAX_TOTAL_BYTES:
            self._closed = True
            raise ConsoleFlood(f"more than {MAX_TOTAL_BYTES >> 20} MiB on the console", tail=self.tail)
        *complete, rest = (self._partial + data).split(b"\n")
        for raw in complete:
            if self._skipping:
                self._skipping = False
                continue
            self._take(raw, now)
        if self._skipping:
            rest = b""
        elif len(rest) > MAX_LINE_BYTES:
            self._take(rest, now)
            self._skipping, rest = True, b""
        self._partial = rest

    def _take(self, raw: bytes, now: float) -> None:
        text = _cleaned(raw[:MAX_LINE_BYTES].decode("utf-8", "replace"))
        self.tail.append(text)
        self._pending.append(Line(text, now))
        if self.onlooker is not None:
            self.onlooker(text)
        if protocol.is_kernel_line(text):
            self.push("kernel", now)
        elif isinstance(message := protocol.parse(text), protocol.Init):
            self.push("init", now)
        elif isinstance(message, protocol.Step):
            self.step(message.name, now)
        elif isinstance(message, protocol.Ready):
            self.push("ready", now)


def _cleaned(text: str) -> str:
    """Leave out what a terminal would obey, or what would hide and reorder what stands beside it."""
    text = _CONTROL.sub("", text)
    if text.isprintable():
        return text
    return "".join(character for character in text if character.isprintable() or character == "\t")
