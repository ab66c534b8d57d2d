"""When an instance first answers over the network: one request, from where the load comes from."""

from __future__ import annotations

import socket
import time
from typing import Final

from bench.errors import InstanceError
from bench.network import LabNetwork

_REQUEST: Final = b"GET / HTTP/1.0\r\n\r\n"


def first_answer(address: str, port: int, timeout_seconds: float, network: LabNetwork | None) -> float:
    """Ask ``http://address:port/`` once and return when the first bytes of the answer came, on CLOCK_MONOTONIC.

    ``network`` is where the address is; without one it is the host's own.

    Raises:
        InstanceError: nothing answers, although the payload says that it is ready.
    """
    try:
        made = network.tcp_socket() if network is not None else socket.socket()
        with made as connection:
            connection.settimeout(timeout_seconds)
            connection.connect((address, port))
            connection.sendall(_REQUEST)
            if not connection.recv(1):
                raise InstanceError(f"{address}:{port} closed the connection without an answer")
            return time.monotonic()
    except OSError as error:
        raise InstanceError(
            f"{address}:{port} does not answer: {error}", hint="the payload said ready before its port was open"
        ) from error
