"""The guest's console: a Unix socket that QEMU connects to, so its first byte is not lost and its end is QEMU's end."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import Final

from bench.errors import InstanceError
from vms.connection import User

_MAX_PATH_BYTES: Final = 107
"""sun_path without its final NUL (unix(7))."""


class ConsoleListener:
    """Listens at ``path`` for one QEMU that runs as ``user``; a context manager that removes the socket.

    Raises:
        InstanceError: the path is too long for a socket.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, user: User | None) -> None:
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise InstanceError(f"{path} is too long for a socket", hint="set ISOMARK_STATE to a shorter path")
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(os.fspath(path))
            path.chmod(0o600)
            if user is not None:
                os.chown(path, user.uid, user.gid)
            self._socket.listen(1)
        except BaseException:
            self.close()
            raise

    def accept(self) -> tuple[socket.socket, float]:
        """Wait until QEMU opens the console, or for ``give_up``; return it, and when it came, on CLOCK_MONOTONIC.

        Raises:
            InstanceError: it was given up.
        """
        try:
            peer, _ = self._socket.accept()
        except OSError as error:
            raise InstanceError("the hypervisor never started") from error
        return peer, time.monotonic()

    def give_up(self) -> None:
        """Have a thread that waits in ``accept`` return; nobody can connect any more."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening and remove the socket; idempotent."""
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> ConsoleListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def peer_pid(peer: socket.socket) -> int:
    """The process at the other end (SO_PEERCRED, unix(7))."""
    pid: int = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid
