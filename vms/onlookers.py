"""Letting people look at a console that a trial reads: a QEMU guest of this host connects its own to nobody else.

Who connects to the socket beside that of the console gets the last lines and then each line as the trial reads it, as
a message of its own. Nothing is kept for the slow: what they do not take they do not see, and the trial never waits.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from bench.channel import Channel
from bench.errors import InstanceError
from vms.connection import is_remote, shown
from vms.stream import weakly

_NAME: Final = "look"
_MESSAGE_BYTES: Final = 1 << 16
"""More than the longest line."""


class Onlookers:
    """Those at the console at ``console``, which ``channel`` reads; a context manager that sends them away.

    They are let in by libvirt's event loop.

    Raises:
        OSError: there can be no socket beside the console.
    """

    def __init__(self, console: Path, channel: Channel) -> None:
        import libvirt

        self._path = console.with_name(_NAME)
        self._channel = channel
        self._shown = deque(channel.tail, maxlen=channel.tail.maxlen)
        self._lock = threading.Lock()
        self._present: list[socket.socket] = []
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._door.bind(os.fspath(self._path))
            self._path.chmod(0o600)
            self._door.listen()
        except BaseException:
            self._door.close()
            raise
        self._watch = libvirt.virEventAddHandle(
            self._door.fileno(), libvirt.VIR_EVENT_HANDLE_READABLE, weakly(self._let_in), None
        )
        channel.onlooker = self._show

    def __enter__(self) -> Onlookers:
        return self

    def __exit__(self, *_: object) -> None:
        import libvirt

        self._channel.onlooker = None
        libvirt.virEventRemoveHandle(self._watch)
        with self._lock:
            for one in (self._door, *self._present):
                one.close()
            self._present.clear()
        self._path.unlink(missing_ok=True)

    def _let_in(self, *_: object) -> None:
        with self._lock, suppress(OSError):  # closed, or gone again
            one, _ = self._door.accept()
            one.setblocking(False)
            self._present.append(one)
            for text in self._shown:
                self._tell(one, text)

    def _show(self, text: str) -> None:
        with self._lock:
            self._shown.append(text)  # what a newcomer is told, so that it hears each line once
            for one in tuple(self._present):
                self._tell(one, text)

    def _tell(self, one: socket.socket, text: str) -> None:
        try:
            one.send(text.encode() + b"\n")
        except BlockingIOError:
            return
        except OSError:  # it has left, maybe with the line before
            one.close()
            self._present = [other for other in self._present if other is not one]


@contextmanager
def looking(description: str, address: str) -> Iterator[Iterator[bytes] | None]:
    """Give the lines, each with its end, that the guest of domain XML ``description`` prints until it ends.

    ``address`` is the libvirt URI that the XML is of.

    ``None``: its console is none that a trial of this host holds.

    Raises:
        InstanceError: its trial has ended, or is another user's or host's.
    """
    source = ET.fromstring(description).find("devices//source[@mode='connect'][@path]")
    if source is None:
        yield None
        return
    if is_remote(address):  # the path is one of that host, which this one may have too
        raise InstanceError(
            f"its console is a socket of the host of {shown(address, address)}",
            hint="isomark vm console on that host shows it",
        )
    path = Path(source.get("path", "")).parent / _NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        try:
            door.connect(os.fspath(path))
        except OSError as error:
            raise InstanceError(
                f"its console cannot be looked at: {error.strerror}", hint="be the user who runs it, or root"
            ) from error
        yield iter(lambda: door.recv(_MESSAGE_BYTES), b"")
