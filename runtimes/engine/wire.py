"""What a monitor and its clients say to each other: one message is one packet, its first byte says what it is.

A client first sends a ``REQUEST``, JSON with ``do``:

    start    nothing more than STARTED; with ``trace`` true, also of attach, that has the times of all steps
    attach   output and, with ``input``, stdin of the container; ends with ENDED
    follow   NEWS whenever the log grew, until the monitor ends
    wait     ENDED when the container ends next
    stop     ``signal``, then after ``timeout`` seconds (``null``: never) SIGKILL; DONE when it ended
    kill     ``signal``; DONE when sent
    pause, unpause   DONE when frozen or thawed
    exec     ``spec``, started without a terminal, its streams being /dev/null; DONE when it runs

Whatever fails is answered by FAILED, JSON with ``message``, ``hint`` and ``code``, the exit status to leave with.
"""

from __future__ import annotations

import _socket
import os
import time

from bench.errors import InstanceError
from runtimes.engine import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 - a class
    from typing import Any

    from runtimes.engine.container import Container

# client -> monitor
REQUEST = b"r"
INPUT = b"i"
"""Bytes for stdin; the next ones only after TAKEN, so that nothing else waits behind them."""
CLOSE_INPUT = b"c"
RESIZE = b"w"
"""JSON: rows, columns."""
SIGNAL = b"s"
"""JSON: a signal's number, passed on to the first process."""

# monitor -> client
STARTED = b"g"
"""Empty, or for a request with ``trace`` JSON: monitor, container, each a list of [step, seconds of CLOCK_MONOTONIC];
the monitor's last is the execution of the command."""
STDOUT = b"o"
STDERR = b"e"
TAKEN = b"k"
NEWS = b"n"
ENDED = b"x"
"""JSON: exit_code, oom_killed, error."""
DONE = b"y"
FAILED = b"f"

MAX_CHUNK = 32 * 1024
MAX_PACKET = 192 * 1024
"""A request holds a whole environment; a packet must fit the socket's send buffer (socket(7), wmem_default)."""


_STARTING_SECONDS = 1.0
_ENDING_SECONDS = 60.0
"""Removing what a container wrote may take long."""
_POLL_SECONDS = 0.002


class Unreachable(InstanceError):
    """The monitor lives, and cannot be spoken to."""


class Refused(InstanceError):
    """The monitor cannot do what was asked; ``code`` is what to exit with."""

    def __init__(self, message: str, hint: str, code: int) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def pair() -> tuple[Socket, Socket]:
    """Two connected ends."""
    one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    return one, other


def listen(directory: str) -> Socket:
    """The monitor's socket in ``directory``, which takes the place of a dead monitor's.

    Raises:
        OSError: it cannot be made.
    """
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    if os.path.lexists(f"{directory}/socket"):
        os.unlink(f"{directory}/socket")
    _through_directory(directory, listener.bind)
    listener.listen(64)
    return listener


def connect(container: Container) -> Socket | None:
    """A connection to the container's monitor; ``None`` if it has none. One that starts or ends is waited for.

    Raises:
        Unreachable: it lives, and its socket is gone.
    """
    begun = time.monotonic()
    while container.is_monitored():
        client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        try:
            _through_directory(container.path, client.connect)
        except FileNotFoundError:
            client.close()
            patience = _STARTING_SECONDS
        except ConnectionRefusedError:
            client.close()
            patience = _ENDING_SECONDS
        except BaseException:
            client.close()
            raise
        else:
            return client
        if time.monotonic() > begun + patience:
            raise Unreachable(
                f"the monitor of container {container.id[:12]} does not answer",
                hint="isomark container rm -f ends it with its container",
            )
        time.sleep(_POLL_SECONDS)
    return None


def _through_directory(directory: str, call: Any) -> None:  # noqa: ANN401 - bind or connect
    """Call with a short name of ``directory/socket``: an address has only 108 bytes (unix(7))."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call(f"/proc/self/fd/{fd}/socket")
    finally:
        os.close(fd)


def send(connection: Socket, kind: bytes, value: object = None) -> None:
    """Send a message with ``value`` as JSON, or bytes as they are.

    Raises:
        OSError: nobody listens.
    """
    body = b"" if value is None else value if isinstance(value, bytes) else text.dumps(value).encode()
    connection.send(kind + body, _socket.MSG_NOSIGNAL)


def receive(connection: Socket) -> tuple[bytes, bytes]:
    """The next message's kind and content; two empty ones when the other side is gone."""
    try:
        packet = connection.recv(MAX_PACKET)
    except ConnectionResetError:
        return b"", b""
    return packet[:1], packet[1:]


def ask(container: Container, request: dict[str, Any]) -> dict[str, Any] | None:
    """Have the monitor do something and wait until it is done: its answer, ``None`` if there is no monitor.

    Raises:
        InstanceError: it cannot.
    """
    connection = connect(container)
    if connection is None:
        return None
    try:
        send(connection, REQUEST, request)
        kind, body = receive(connection)
    except BrokenPipeError:
        return None
    finally:
        connection.close()
    if kind == FAILED:
        failed = text.loads(body.decode())
        raise Refused(failed["message"], failed["hint"], failed["code"])
    if not kind:
        return None
    answer: dict[str, Any] = text.loads(body.decode()) if body else {}
    return answer
