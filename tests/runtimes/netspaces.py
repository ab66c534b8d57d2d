"""Network namespaces for tests: a host of their own, an outside world, and containers made of a namespace alone.

A socket belongs to the namespace it was made in, so one process can be all of them.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtimes import libc
from runtimes.network import attach
from runtimes.network.lease import Lease, Port

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
OUTSIDE = "192.0.2.2"
HOST = "192.0.2.1"
FILTER_BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class Netspace:
    """A network namespace that lives as long as this object is open."""

    def __init__(self) -> None:
        before = _current()
        libc.unshare(libc.CLONE_NEWNET)
        self.fd = _current()
        libc.setns(before, libc.CLONE_NEWNET)
        os.close(before)
        self.run("ip link set lo up")

    @contextmanager
    def inside(self) -> Iterator[None]:
        before = _current()
        libc.setns(self.fd, libc.CLONE_NEWNET)
        try:
            yield
        finally:
            libc.setns(before, libc.CLONE_NEWNET)
            os.close(before)

    def run(self, command: str) -> str:
        with self.inside():
            return shell(command)

    def open(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        with self.inside():
            made = socket.socket(socket.AF_INET, kind)
        made.settimeout(2)
        return made

    def server(self, port: int, kind: int = socket.SOCK_STREAM, address: str = "") -> socket.socket:
        made = self.open(kind)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, port))
            if kind == socket.SOCK_STREAM:
                made.listen()
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        os.close(self.fd)


class Container(Netspace):
    """A namespace that was planned and connected as a container is."""

    def __init__(self, state: str, name: str, *ports: Port) -> None:
        super().__init__()
        self.name = name
        self.lease: Lease = attach.plan(state, name, ports)
        attach.connect(self.lease, self.fd)
        self.run(
            f"ip addr add {self.lease.address}/{self.lease.prefix_length} dev eth0 && ip link set eth0 up && "
            f"ip route add default via {self.lease.gateway}"
        )


def shell(command: str) -> str:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def talk(server: socket.socket, client: socket.socket, address: tuple[str, int]) -> str:
    """Exchange a word over TCP; returns the address that the server saw."""
    with client:
        client.connect(address)
        answered, seen = server.accept()
        with answered:
            client.send(b"ping")
            assert answered.recv(9) == b"ping"
            answered.send(b"pong")
            assert client.recv(9) == b"pong"
    return str(seen[0])


def exchange(server: socket.socket, client: socket.socket, address: tuple[str, int]) -> str:
    """Exchange a datagram; the answer comes from where it was sent to. Returns the address that the server saw."""
    with client:
        client.connect(address)
        client.send(b"ping")
        word, seen = server.recvfrom(9)
        assert word == b"ping"
        server.sendto(b"pong", seen)
        assert client.recv(9) == b"pong"
    return str(seen[0])


@contextmanager
def host_namespace() -> Iterator[Netspace]:
    """Be in a network namespace of one's own, as if it were the host's: nothing of the machine's network is touched."""
    host = Netspace()
    with host.inside():
        FORWARD.write_text("0")  # a new namespace begins with the machine's
        yield host
    host.close()


@contextmanager
def outside_world(host: Netspace) -> Iterator[Netspace]:
    """A machine beside the host; it knows no way to the containers' subnet."""
    outside = Netspace()
    with host.inside():
        shell("ip link add wan type veth peer name lan")
        subprocess.run(
            ["ip", "link", "set", "lan", "netns", f"/proc/{os.getpid()}/fd/{outside.fd}"],
            check=True,
            capture_output=True,
        )
        shell(f"ip link set wan up && ip addr add {HOST}/24 dev wan")
    outside.run(f"ip addr add {OUTSIDE}/24 dev lan && ip link set lan up")
    yield outside
    outside.close()


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
