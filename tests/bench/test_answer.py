"""The first answer over the network: when it came, and why it did not."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.answer import first_answer
from bench.driver import Lab
from bench.errors import InstanceError

_SIOCGSKNS = 0x894C
"""The network namespace of a socket (linux/sockios.h)."""


@contextmanager
def server(answer: bytes, after_seconds: float = 0.0) -> Iterator[int]:
    """Something that accepts one connection, waits, answers and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                time.sleep(after_seconds)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_the_time_is_that_of_the_answer_not_of_the_connection() -> None:
    with server(b"HTTP/1.0 200 OK\r\n\r\n", after_seconds=0.2) as port:
        asked = time.monotonic()
        at = first_answer("127.0.0.1", port, 10, None)
        assert 0.2 <= at - asked <= time.monotonic() - asked


def test_who_hangs_up_has_not_answered() -> None:
    with server(b"") as port, pytest.raises(InstanceError, match="without an answer"):
        first_answer("127.0.0.1", port, 10, None)


def test_a_closed_port_and_silence_are_told_with_what_to_look_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(InstanceError, match="timed out") as caught:
            first_answer("127.0.0.1", silent.getsockname()[1], 0.2, None)
        assert "before its port was open" in caught.value.hint
        port = silent.getsockname()[1]
    with pytest.raises(InstanceError, match="refused"):
        first_answer("127.0.0.1", port, 10, None)


def test_a_socket_of_the_lab_s_network_is_made_there_and_this_thread_stays_outside(lab: Lab) -> None:
    if lab.network is None:
        pytest.skip("no lab network without root")
    before = os.stat("/proc/thread-self/ns/net").st_ino
    with lab.network.tcp_socket() as connection:
        inside = fcntl.ioctl(connection.fileno(), _SIOCGSKNS)
        try:
            assert os.fstat(inside).st_ino == lab.network.path.stat().st_ino != before
        finally:
            os.close(inside)
    assert os.stat("/proc/thread-self/ns/net").st_ino == before
