"""A console that libvirt carries: between its stream and a socket.

- libvirt's client takes in whatever the host sends, read or not, so this reads at once, in libvirt's event loop, and
  keeps what the trial has not read yet: as much as a console may ever print, and with more than that it stops
  listening.
- Whatever waits for an answer of libvirtd is done in a thread of the stream's own: the event loop is what notices that
  libvirtd answers no more (``vms.connection``), and so may never wait for it.
- libvirtd may hang for good, or crash, when a domain ends whose console somebody listens to: the end of the stream and
  that of the domain take two locks in opposite order (9.0: virFDStreamCloseInt and virChrdevFree). Whoever ends a
  domain, or knows that it ends, lets go of its console first: ``hang_up``.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from bench.channel import MAX_TOTAL_BYTES
from vms.connection import Connection
from vms.deadline import awaited

if TYPE_CHECKING:
    import libvirt

LIMIT_BYTES: Final = MAX_TOTAL_BYTES + 65536
"""A little more than the channel takes, so that the flood is noticed there."""
LINGER_SECONDS: Final = 1.0
"""How long the console's last bytes may come after the domain's end."""
HANG_UP_SECONDS: Final = 30.0
"""How long libvirtd may take to let go; one that does not answer is noticed earlier."""
_CHUNK: Final = 65536
_WOULD_BLOCK: Final = -2


class ConsoleStream:
    """The console of a running ``domain``; ``detach`` gives the descriptor that the trial reads and writes.

    Raises:
        libvirt.libvirtError: libvirt cannot open the console.
        InstanceError: it does not in time.
    """

    def __init__(self, connection: Connection, domain: libvirt.virDomain, *, force: bool = False) -> None:
        self._alone = connection.alone
        self._lock = threading.Lock()
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._backlog = bytearray()
        self._carried = 0
        self._source_open = True
        self._trial_writes = True
        self._lingers_until: float | None = None
        self._end_is_held = False
        self._closed = False
        self._let_go = threading.Event()
        try:
            awaited("open the guest's console", partial(self._open, connection, domain, force=force))
        except BaseException:
            with self._lock:
                self._closed, self._source_open = True, False
            self._shut()
            raise
        self._carrier = threading.Thread(target=self._carry, name="console", daemon=True)
        self._carrier.start()

    def detach(self) -> int:
        """Return the other end's descriptor; the caller closes it."""
        return self._theirs.detach()

    def hang_up(self) -> None:
        """Let go of the domain's console, whatever is still to come; the trial is told the end with the domain's."""
        with self._lock:
            if self._closed:
                return
            if self._source_open:
                self._source_open, self._end_is_held = False, self._lingers_until is None
            self._ring()
        self._let_go.wait(HANG_UP_SECONDS)

    def linger(self) -> None:
        """The domain is gone: end soon, should the stream not end by itself."""
        with self._lock:
            self._end_is_held = False
            if self._lingers_until is None and not self._closed:
                self._lingers_until = time.monotonic() + LINGER_SECONDS
                self._ring()

    def close(self) -> None:
        """Let go of stream and socket; idempotent. What waits for a libvirtd that never answers is left to itself."""
        with self._lock:
            if self._closed:
                return
            self._closed, self._source_open = True, False
            self._ring()
        self._carrier.join(HANG_UP_SECONDS)
        if self._carrier.is_alive():
            return
        self._shut()
        # libvirt's client keeps a stream's callback data for ever (9.0: remoteStreamCallbackFree), and so the Python
        # object of the stream, which would hold the connection open: free what is in it
        self._stream.__del__()
        vars(self._stream).clear()

    def _open(self, connection: Connection, domain: libvirt.virDomain, *, force: bool) -> None:
        import libvirt

        events = libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP
        with self._alone:
            self._stream = connection.open().newStream(libvirt.VIR_STREAM_NONBLOCK)
            domain.openConsole(None, self._stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE if force else 0)
            # at once, for what comes before waits in libvirt's client
            self._stream.eventAddCallback(events, weakly(self._stream_event), None)
        if self._closed:  # nobody waits for it any more
            self._drop_stream()

    def _stream_event(self, _stream: object, _events: int, _: object) -> None:
        """Take in what is there; called by libvirt's event loop."""
        with self._lock:
            if self._source_open:
                self._receive()
                self._flush()
                self._ring()

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
            self._source_open = bool(data) and self._carried <= LIMIT_BYTES

    def _carry(self) -> None:
        """Carry until there is nothing more to carry; the stream's own thread."""
        try:
            while not self._is_done():
                self._turn()
        finally:
            self._drop_stream()
            with suppress(OSError):  # nobody reads any more
                self._ours.shutdown(socket.SHUT_RDWR)

    def _is_done(self) -> bool:
        with self._lock:
            if self._lingers_until is not None and time.monotonic() >= self._lingers_until:
                self._receive()
                self._source_open = False
            ended = not self._source_open
            done = self._closed or (ended and not self._backlog and not self._end_is_held)
        if ended:
            self._drop_stream()
        return done

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        waiting = select.poll()
        waiting.register(self._bell, select.POLLIN)
        with self._lock:
            wanted = (select.POLLOUT if self._backlog else 0) | (select.POLLIN if self._trial_writes else 0)
            until = self._lingers_until if self._source_open else None
        if wanted:
            waiting.register(self._ours, wanted)
        seconds = None if until is None else max(0.0, until - time.monotonic())
        ready = dict(waiting.poll(None if seconds is None else seconds * 1000))
        if self._bell in ready:
            os.eventfd_read(self._bell)
        happened = ready.get(self._ours.fileno(), 0)
        if happened & ~select.POLLIN:
            with self._lock:
                self._flush()
        if happened & ~select.POLLOUT:
            self._pass_on()

    def _flush(self) -> None:
        """Hand on what the trial's end takes now."""
        try:
            while self._backlog:
                sent = self._ours.send(self._backlog[:_CHUNK])
                del self._backlog[:sent]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more
            self._backlog.clear()

    def _pass_on(self) -> None:
        """Send what the trial wrote."""
        import libvirt

        try:
            data = self._ours.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._trial_writes = False
            return
        try:
            if self._source_open:
                with self._alone:
                    self._stream.send(data)
        except libvirt.libvirtError:
            with self._lock:
                self._source_open = False

    def _drop_stream(self) -> None:
        """Let go of libvirt's end; idempotent."""
        import libvirt

        if self._let_go.is_set():
            return
        with self._alone:
            for step in (self._stream.eventRemoveCallback, self._stream.abort):
                with suppress(libvirt.libvirtError):  # it has ended
                    step()
        self._let_go.set()

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def _shut(self) -> None:
        self._ours.close()
        self._theirs.close()
        os.close(self._bell)


def weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Call ``method`` as long as its object is there: libvirt does not always let go of what it called."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: object) -> None:
        if (found := reference()) is not None:
            found(*arguments)

    return call
