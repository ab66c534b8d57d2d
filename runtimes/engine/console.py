"""Our own terminal and a container's, joined: for a command that is our own child."""

from __future__ import annotations

import _signal
import fcntl
import os
import select
import termios
from struct import pack

from runtimes.engine.attach import DETACHED, ENDED, write_all
from runtimes.engine.terminal import KeyWatch, Raw, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

CHUNK = 32 * 1024


class Console:
    """Relays between descriptors 0 and 1 and a terminal's ``master`` until its other end is closed."""

    def __init__(self, master: int, *, keys: bytes, gives_input: bool) -> None:
        self._master = master
        self._keys = KeyWatch(keys)
        self._gives_input = gives_input
        self._poll = select.poll()
        self._unwritten = b""

    def run(self) -> str:
        """Relay; returns ENDED or, if the keys were pressed, DETACHED."""
        os.set_blocking(self._master, False)
        self._poll.register(self._master, select.POLLIN)
        _signal.signal(_signal.SIGWINCH, self._resize)
        self._resize(0, None)
        if not self._gives_input:
            return self._relay()
        self._poll.register(0, select.POLLIN)
        with Raw(0):
            return self._relay()

    def _relay(self) -> str:
        while True:
            for fd, events in self._poll.poll():
                if fd == 0:
                    self._read_keys()
                    if self._keys.found:
                        return DETACHED
                    continue
                if events & select.POLLOUT:
                    self._write_keys()
                if events & ~select.POLLOUT and not self._show():
                    return ENDED

    def _show(self) -> bool:
        try:
            data = os.read(self._master, CHUNK)
        except BlockingIOError:
            return True
        except OSError:  # EIO: nobody holds the other end any more
            return False
        return bool(data) and write_all(1, data)

    def _read_keys(self) -> None:
        try:
            data = os.read(0, CHUNK)
        except OSError:
            data = b""
        if not data:  # our terminal hung up
            self._poll.unregister(0)
            return
        self._unwritten += self._keys.feed(data)
        self._write_keys()

    def _write_keys(self) -> None:
        try:
            self._unwritten = self._unwritten[os.write(self._master, self._unwritten) :] if self._unwritten else b""
        except BlockingIOError:
            pass
        except OSError:
            self._unwritten = b""
        self._poll.register(self._master, select.POLLIN | (select.POLLOUT if self._unwritten else 0))
        if self._gives_input:  # read no more before this has been taken
            self._poll.register(0, 0 if self._unwritten else select.POLLIN)

    def _resize(self, _number: int, _frame: FrameType | None) -> None:
        found = size(0)
        if found is not None:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, pack("HHHH", found[0], found[1], 0, 0))
