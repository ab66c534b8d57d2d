"""A container's terminal outside of it: its master sent to the engine, or shown on this process's own terminal.

pty(7), termios(3); the engine's end as in runc's docs/terminals.md.
"""

from __future__ import annotations

import _signal
import _socket
import fcntl
import os
import select
import sys
import termios

from bench.errors import UsageError
from runtimes import steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_NAME: Final = b"/dev/ptmx"
"""Said beside the descriptor; engines only see that there is something."""
_CHUNK: Final = 65536
_KEPT: Final = frozenset([
    _signal.SIGCHLD, _signal.SIGKILL, _signal.SIGSTOP, _signal.SIGPIPE, _signal.SIGSEGV, _signal.SIGBUS,
    _signal.SIGFPE, _signal.SIGILL, _signal.SIGURG, _signal.SIGTTIN, _signal.SIGTTOU,
])  # fmt: skip
"""Signals that are not the child's."""


def connect(path: str) -> _socket.socket:
    """Connect to the engine's socket before anything is made, so that a wrong path costs nothing.

    Raises:
        UsageError: nobody listens there.
    """
    directory, name = os.path.split(path)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    held = -1
    try:
        held = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        connection.connect(f"/proc/self/fd/{held}/{name}")  # a path may be longer than an address (unix(7))
    except OSError as error:
        connection.close()
        raise UsageError(f"cannot connect to the console socket {path}: {error.strerror}") from None
    finally:
        if held != -1:
            os.close(held)
    return connection


def hand_over(connection: _socket.socket, master: int) -> None:
    """Send the terminal's master to the engine."""
    try:
        steps.send(connection, _NAME, [master])
    except OSError as error:
        raise UsageError(f"cannot send the terminal over the console socket: {error.strerror}") from None
    finally:
        os.close(master)
        connection.close()


def own_size() -> list[int] | None:
    """Rows and columns of this process's own terminal, if it has one."""
    own = _own()
    if own == -1:
        return None
    size = fcntl.ioctl(own, termios.TIOCGWINSZ, bytes(8))
    return [int.from_bytes(size[at : at + 2], sys.byteorder) for at in (0, 2)]


def _own() -> int:
    """The first standard stream that is a terminal, or -1."""
    return next((fd for fd in (0, 1, 2) if os.isatty(fd)), -1)


class Relay:
    """Shows a container's terminal on this process's own: a context manager that leaves that as it was."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._own = _own()
        self._before: list[Any] | None = None
        self._input = True

    def __enter__(self) -> Relay:
        os.set_blocking(self._master, False)
        if self._own != -1:
            self.resize()
        if os.isatty(0):
            self._before = termios.tcgetattr(0)
            termios.tcsetattr(0, termios.TCSANOW, _raw(self._before))
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)
        os.close(self._master)

    def resize(self) -> None:
        """Take over the size of this process's own terminal."""
        if self._own != -1:
            size = fcntl.ioctl(self._own, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def copy(self, ended: int, signals: Signals) -> None:
        """Copy both ways until the process of pidfd ``ended`` has ended and all it said has been shown."""
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        poll.register(ended, select.POLLIN)
        poll.register(signals.wake, select.POLLIN)
        poll.register(0, select.POLLIN)
        over = False
        while True:
            ready = [fd for fd, _ in poll.poll(0 if over else None)]
            if signals.wake in ready:
                self.resize()
                signals.hand_on(ended)
            if 0 in ready and not over and not self._take_input():
                poll.unregister(0)
            if self._master in ready and not self._show():
                poll.unregister(self._master)
            elif over:
                return
            over = over or ended in ready

    def _take_input(self) -> bool:
        try:
            data = os.read(0, _CHUNK)
        except OSError:
            return False
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._master, rest) :]
            except BlockingIOError:  # the container does not read: wait, as a terminal would
                select.select([], [self._master], [])
            except OSError:
                return False
        return bool(data)

    def _show(self) -> bool:
        try:
            data = os.read(self._master, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:  # EIO: nobody has the other end open
            return False
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(1, rest) :]
        return bool(data)


def _raw(attributes: list[Any]) -> list[Any]:
    """As cfmakeraw(3)."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, characters = attributes
    iflag &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
        | termios.ICRNL | termios.IXON
    )  # fmt: skip
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    return [iflag, oflag & ~termios.OPOST, cflag, lflag, ispeed, ospeed, list(characters)]


class Signals:
    """What this process is sent from now on, for its child: made before that runs, so that none is lost or ends us.

    Not handed on: SIGCHLD, SIGPIPE, SIGURG, SIGWINCH, and what a fault of our own would raise.

    Attributes:
        wake: Becomes readable when one has come.
    """

    __slots__ = ("_pending", "wake")

    def __init__(self) -> None:
        self.wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pending: list[int] = []
        for number in range(1, _signal.NSIG):
            if number in _KEPT or 32 <= number < 34:  # glibc's own
                continue
            _signal.signal(number, self._remember)
        _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def _remember(self, number: int, _frame: object) -> None:
        if number != _signal.SIGWINCH:
            self._pending.append(number)

    def hand_on(self, pidfd: int) -> None:
        """Send what has come to the process of ``pidfd``."""
        os.read(self.wake, 4096)
        while self._pending:
            try:
                _signal.pidfd_send_signal(pidfd, self._pending.pop(0))
            except ProcessLookupError:
                return
