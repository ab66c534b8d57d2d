"""A console that libvirt carries: between its stream and a socket, by libvirt's event loop.

libvirt's client takes in whatever the host sends, read or not, so this reads at once and keeps what the trial
has not read yet: as much as a console may ever print, and with more than that it stops listening.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bench.channel import MAX_TOTAL_BYTES

if TYPE_CHECKING:
    import libvirt

LIMIT_BYTES: Final = MAX_TOTAL_BYTES + 65536
"""A little more than the channel takes, so that the flood is noticed there."""
LINGER_MILLISECONDS: Final = 1000
"""How long the console's last bytes may come after the domain's end."""
_CHUNK: Final = 65536
_WOULD_BLOCK: Final = -2


class ConsoleStream:
    """The console of a running ``domain``; ``detach`` gives the descriptor that the trial reads and writes.

    Raises:
        libvirt.libvirtError: libvirt cannot open the console.
    """

    def __init__(self, connection: libvirt.virConnect, domain: libvirt.virDomain, *, force: bool = False) -> None:
        import libvirt

        self._lock = threading.Lock()
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._backlog = bytearray()
        self._carried = 0
        self._source_open = True
        self._closed = False
        self._linger: int | None = None
        try:
            self._stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            domain.openConsole(None, self._stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE if force else 0)
        except libvirt.libvirtError:
            self._ours.close()
            self._theirs.close()
            raise
        self._watch = libvirt.virEventAddHandle(
            self._ours.fileno(), libvirt.VIR_EVENT_HANDLE_READABLE, weakly(self._socket_event), None
        )
        # last: it may be called at once, in the loop's thread
        self._stream.eventAddCallback(
            libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP,
            weakly(self._stream_event),
            None,
        )

    def detach(self) -> int:
        """Return the other end's descriptor; the caller closes it."""
        return self._theirs.detach()

    def linger(self) -> None:
        """The domain is gone: end soon, should the stream not end by itself."""
        import libvirt

        with self._lock:
            if self._linger is None and not self._closed:
                self._linger = libvirt.virEventAddTimeout(LINGER_MILLISECONDS, weakly(self._give_up), None)

    def close(self) -> None:
        """Let go of stream and socket; idempotent."""
        import libvirt

        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._linger is not None:
                libvirt.virEventRemoveTimeout(self._linger)
            libvirt.virEventRemoveHandle(self._watch)
            self._ours.close()
            self._theirs.close()
        self._drop_stream()
        # libvirt's client keeps a stream's callback data for ever (9.0: remoteStreamCallbackFree), and so the Python
        # object of the stream, which would hold the connection open: free what is in it
        self._stream.__del__()
        vars(self._stream).clear()

    def _drop_stream(self) -> None:
        import libvirt

        for step in (self._stream.eventRemoveCallback, self._stream.abort):
            try:
                step()
            except libvirt.libvirtError:  # it has ended
                continue

    def _stream_event(self, _stream: object, _events: int, _: object) -> None:
        with self._lock:
            if not self._closed and self._source_open:
                self._receive()

    def _receive(self) -> None:
        import libvirt

        while self._source_open:  # all that libvirt has: what is left there grows without bounds
            try:
                data = self._stream.recv(_CHUNK)
            except libvirt.libvirtError:
                data = b""
            if data == _WOULD_BLOCK:
                break
            self._carried += len(data)
            self._backlog += data
            if not data or self._carried > LIMIT_BYTES:
                self._end_source()
        self._flush()

    def _end_source(self) -> None:
        self._source_open = False
        self._drop_stream()

    def _give_up(self, timer: int, _: object) -> None:
        import libvirt

        with self._lock:
            if self._closed:
                return
            libvirt.virEventRemoveTimeout(timer)
            self._linger = None
            if self._source_open:
                self._receive()
            if self._source_open:
                self._end_source()
            self._flush()

    def _flush(self) -> None:
        """Hand on what the trial's end takes now; the rest when it takes more; the end after the rest."""
        import libvirt

        try:
            while self._backlog:
                sent = self._ours.send(self._backlog[:_CHUNK])
                del self._backlog[:sent]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more
            self._backlog.clear()
        if not self._backlog and not self._source_open:
            libvirt.virEventUpdateHandle(self._watch, 0)
            with suppress(OSError):  # nobody reads any more
                self._ours.shutdown(socket.SHUT_RDWR)
            return
        writable = libvirt.VIR_EVENT_HANDLE_WRITABLE if self._backlog else 0
        libvirt.virEventUpdateHandle(self._watch, libvirt.VIR_EVENT_HANDLE_READABLE | writable)

    def _socket_event(self, watch: int, _fd: int, events: int, _: object) -> None:
        import libvirt

        with self._lock:
            if self._closed:
                return
            if events & libvirt.VIR_EVENT_HANDLE_WRITABLE:
                self._flush()
            if events & libvirt.VIR_EVENT_HANDLE_READABLE and self._source_open:
                self._pass_on(watch)

    def _pass_on(self, watch: int) -> None:
        """Send what the trial wrote; its commands are short, so what does not fit at once means nobody reads."""
        import libvirt

        try:
            data = self._ours.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            libvirt.virEventUpdateHandle(watch, libvirt.VIR_EVENT_HANDLE_WRITABLE if self._backlog else 0)
            return
        try:
            self._stream.send(data)
        except libvirt.libvirtError:
            self._end_source()
            self._flush()


def weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Call ``method`` as long as its object is there: libvirt does not always let go of what it called."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: object) -> None:
        if (found := reference()) is not None:
            found(*arguments)

    return call
