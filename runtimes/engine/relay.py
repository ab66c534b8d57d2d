"""Between a container's standard streams and everybody who watches: the log and attached clients.

A client that does not read holds the container's output up once a quarter of a MiB waits for it, as in Docker: nothing
is lost and nothing grows.
"""

from __future__ import annotations

import _socket
import errno
import os
import termios

from runtimes.engine import text, wire
from runtimes.engine.loop import GONE, READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 - a class
    from collections.abc import Callable

    from runtimes.engine.log import LogWriter
    from runtimes.engine.loop import Loop

MAX_WAITING_BYTES = 256 * 1024
_STREAMS = {"stdout": wire.STDOUT, "stderr": wire.STDERR}


class Client:
    """One connection to the monitor, as the monitor sees it."""

    __slots__ = ("attached", "connection", "fd", "follows", "queue", "waiting_bytes", "writes")

    def __init__(self, connection: Socket) -> None:
        self.connection = connection
        self.fd = connection.fileno()
        self.queue: list[bytes] = []
        self.waiting_bytes = 0
        self.attached = False
        self.writes = False
        self.follows = False


class Relay:
    """Owns the container's stdio ends and its clients; ``request`` is called with what a client asks for."""

    def __init__(
        self,
        loop: Loop,
        log: LogWriter | None,
        request: Callable[[Client, dict[str, object]], None],
        signal: Callable[[int], None],
        *,
        input_once: bool,
    ) -> None:
        self.clients: dict[int, Client] = {}
        self.log_fault: str | None = None
        self._loop = loop
        self._log = log
        self._request = request
        self._signal = signal
        self._input_once = input_once
        self._outputs: dict[int, str] = {}
        self._terminal = -1
        self._input = -1
        self._unwritten = b""
        self._writer: Client | None = None
        self._closing_input = False
        self._stuck: set[int] = set()
        self._holds = True

    # the container's side

    def take(self, outputs: dict[int, str], input_fd: int, terminal: int) -> None:
        """Take over the near ends of a container just started: descriptors -> stream; -1: there is none."""
        self._outputs = outputs
        self._input = input_fd
        self._terminal = terminal
        self._holds = True
        for fd in {*outputs, input_fd} - {-1}:
            os.set_blocking(fd, False)
        self._watch_outputs()

    @property
    def silent(self) -> bool:
        """Whether all output streams have ended."""
        return not self._outputs

    def let_go(self) -> None:
        """Hold the output up for nobody: its writers have ended, so that no more comes than the pipes have room for."""
        self._holds = False
        self._stuck.clear()
        self._watch_outputs()

    def end(self) -> None:
        """The container ended: close its ends and finish the log's last line."""
        for fd in list(self._outputs):
            self._close_output(fd)
        self._close_input()
        if self._log is not None:
            self._logging(self._log.flush)
            self._tell_followers()

    def _watch_outputs(self) -> None:
        for fd in self._outputs:
            if self._stuck:
                self._loop.forget(fd)
            else:
                self._loop.watch(fd, READ, self._reader(fd))

    def _reader(self, fd: int) -> Callable[[int], None]:
        return lambda _events: self._read(fd)

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, wire.MAX_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # how a terminal says that nobody holds its other end
                raise
            data = b""
        if not data:
            self._close_output(fd)
            return
        stream = self._outputs[fd]
        if self._log is not None:
            log = self._log
            self._logging(lambda: log.write(stream, data))
            self._tell_followers()
        packet = _STREAMS[stream] + data
        for client in list(self.clients.values()):
            if client.attached:
                self.send(client, packet)

    def _logging(self, call: Callable[[], None]) -> None:
        """A log that cannot be written must not stop the container; the state says that it is incomplete."""
        try:
            call()
        except OSError as error:
            self.log_fault = f"the log is incomplete: {error.strerror}"

    def _close_output(self, fd: int) -> None:
        del self._outputs[fd]
        self._loop.forget(fd)
        if fd == self._input:
            self._input = self._terminal = -1
        os.close(fd)

    # input

    def _take_input(self, client: Client, data: bytes) -> None:
        self._unwritten += data
        self._writer = client
        self._write_input()

    def _write_input(self) -> None:
        while self._unwritten and self._input != -1:
            try:
                written = os.write(self._input, self._unwritten)
            except BlockingIOError:
                self._loop.watch(self._input, self._input_events(WRITE), lambda _events: self._input_ready())
                return
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise
                self._close_input()
                break
            self._unwritten = self._unwritten[written:]
        self._unwritten = b""
        if self._writer is not None:
            self.send(self._writer, wire.TAKEN)
            self._writer = None
        if self._closing_input:
            self._close_input()

    def _input_events(self, events: int) -> int:
        return events | READ if self._input in self._outputs and not self._stuck else events

    def _input_ready(self) -> None:
        fd = self._input
        if fd in self._outputs:  # a terminal is both
            self._read(fd)
        if self._input == -1:
            self._write_input()
            return
        self._loop.forget(fd)
        if fd in self._outputs:
            self._watch_outputs()
        self._write_input()

    def _close_input(self) -> None:
        """End of file for the container; a terminal has none, it is closed with its output."""
        if self._input == -1 or self._input in self._outputs:
            return
        if self._unwritten and self._writer is not None:
            self._closing_input = True
            if self._writer.fd in self.clients:
                return
        self._loop.forget(self._input)
        os.close(self._input)
        self._input = -1
        self._closing_input = False

    # the clients' side

    def accept(self, connection: Socket) -> Client:
        """Serve a new connection."""
        connection.setblocking(False)
        client = Client(connection)
        self.clients[client.fd] = client
        self._watch_client(client)
        return client

    def send(self, client: Client, packet: bytes) -> None:
        """Send now or when there is room."""
        if client.fd not in self.clients:
            return
        if client.queue or not self._try_send(client, packet):
            client.queue.append(packet)
            client.waiting_bytes += len(packet)
            self._watch_client(client)
            if self._holds and client.waiting_bytes > MAX_WAITING_BYTES:
                self._stuck.add(client.fd)
                self._watch_outputs()

    def tell(self, client: Client, kind: bytes, value: object) -> None:
        """Send ``value`` as JSON."""
        self.send(client, kind + text.dumps(value).encode())

    def attach(self, client: Client, *, writes: bool, size: list[int] | None) -> None:
        """Let the client have the output and, with ``writes``, give the input."""
        client.attached = True
        client.writes = writes
        if size is not None:
            self._resize(size)

    def drop(self, client: Client) -> None:
        """Say goodbye: what is still queued is sent while it is read at once, and no longer."""
        if self.clients.pop(client.fd, None) is None:
            return
        self._loop.forget(client.fd)
        client.connection.close()
        if client.fd in self._stuck:
            self._stuck.discard(client.fd)
            self._watch_outputs()
        if client.writes and self._input_once and not any(other.writes for other in self.clients.values()):
            self._close_input()

    def drain(self, client: Client) -> bool:
        """Whether nothing is queued for ``client``."""
        return client.fd not in self.clients or not client.queue

    def _try_send(self, client: Client, packet: bytes) -> bool:
        try:
            client.connection.send(packet, _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:  # it is gone, however
            self.drop(client)
        return True

    def _watch_client(self, client: Client) -> None:
        self._loop.watch(
            client.fd, READ | WRITE if client.queue else READ, lambda events: self._client_ready(client, events)
        )

    def _client_ready(self, client: Client, events: int) -> None:
        if events & WRITE:
            while client.queue and client.fd in self.clients and self._try_send(client, client.queue[0]):
                client.waiting_bytes -= len(client.queue.pop(0))
            if client.fd not in self.clients:
                return
            if not client.queue:
                self._watch_client(client)
            if client.fd in self._stuck and client.waiting_bytes < MAX_WAITING_BYTES // 2:
                self._stuck.discard(client.fd)
                self._watch_outputs()
        if events & (READ | GONE):
            self._hear(client)

    def _hear(self, client: Client) -> None:
        try:
            kind, body = wire.receive(client.connection)
            self._heed(client, kind, body)
        except BlockingIOError:
            return
        except (ValueError, LookupError, TypeError, OverflowError):  # it does not know the language
            self.drop(client)

    def _heed(self, client: Client, kind: bytes, body: bytes) -> None:
        if kind == wire.INPUT and client.writes:
            self._take_input(client, body)
        elif kind == wire.CLOSE_INPUT and client.writes:
            if self._input_once:
                self._close_input()
        elif kind == wire.RESIZE:
            self._resize(text.loads(body.decode()))
        elif kind == wire.SIGNAL:
            self._signal(int(text.loads(body.decode())))
        elif kind == wire.REQUEST:
            self._request(client, text.loads(body.decode()))
        elif not kind:
            self.drop(client)

    def _resize(self, size: list[int]) -> None:
        if self._terminal != -1:
            termios.tcsetwinsize(self._terminal, (size[0], size[1]))

    def _tell_followers(self) -> None:
        for client in list(self.clients.values()):
            if client.follows and not client.queue:
                self.send(client, wire.NEWS)
