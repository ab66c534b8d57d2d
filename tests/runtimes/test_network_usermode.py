"""An ordinary user's container has a way out and published ports through slirp4netns and pasta, which end with it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from netspaces import HOST, OUTSIDE, Netspace, exchange, host_namespace, needs_root, outside_world, shell, talk

from bench.errors import HostError
from runtimes.network import usermode

pytestmark = needs_root

_USER = 65534
_ROOTLESS = """
import encodings.ascii, encodings.idna, os, socket, subprocess, sys, time
from runtimes import libc
from bench.errors import HostError
from runtimes.network import ports, usermode
os.chown(sys.argv[1], 65534, 65534)
if os.stat("/dev/net/tun").st_mode & 6 != 6:  # as udev has it elsewhere; in a mount namespace of this test alone
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("tmpfs", "/dev/net", "tmpfs", 0)
    os.mknod("/dev/net/tun", 0o20666, os.makedev(10, 200))
    os.chmod("/dev/net/tun", 0o666)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
libc.prctl(4, 1)  # PR_SET_DUMPABLE: as for a process that began as this user
inside = subprocess.Popen(["unshare", "-Urn", "sh", "-c", "echo; exec sleep 60"], stdout=-1)
inside.stdout.readline()
published = [port for text in sys.argv[3:] for port in ports.parse(text)]
try:
    helper = usermode.start(inside.pid, sys.argv[1], published, program=sys.argv[2])
    print(inside.pid, helper.pid, *(port.host_port for port in helper.ports), flush=True)
    sys.stdin.readline()
    helper.stop()
except HostError as error:
    print("refused", error.message, flush=True)
finally:
    inside.kill()
    inside.wait()
"""


class Rootless:
    """Another user's process with a container and its helper."""

    def __init__(self, directory: Path, program: str, *published: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ROOTLESS, str(directory), program, *published],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline().strip()
        self.container = self.helper = 0
        self.ports: list[int] = []
        if self.said and not self.said.startswith("refused"):
            self.container, self.helper, *self.ports = (int(word) for word in self.said.split())

    def inside(self) -> Netspace:
        """Its network namespace, for sockets of the test's own."""
        assert self.container, self.said
        space = Netspace()
        os.close(space.fd)
        space.fd = os.open(f"/proc/{self.container}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return space

    def __enter__(self) -> Rootless:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.communicate("\n", timeout=20)


@pytest.fixture(params=["slirp4netns", "pasta"])
def program(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user gets to; pytest's own are for root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def outside() -> Iterator[Netspace]:
    with host_namespace() as host, outside_world(host) as opened:
        shell(f"ip route add default via {OUTSIDE}")  # pasta takes the address of the way out
        opened.host = host  # type: ignore[attr-defined]
        yield opened


def test_it_reaches_the_outside_and_is_reached(program: str, outside: Netspace, place: Path) -> None:
    """From another machine only through slirp4netns: the pasta of Debian 12 ends such connections on Linux 6.18."""
    client, address = (outside, HOST) if program == "slirp4netns" else (outside.host, "127.0.0.1")  # type: ignore[attr-defined]
    with Rootless(place, program, "8080:80", "5353:53/udp", "90") as rootless:
        inside = rootless.inside()
        assert rootless.ports[:2] == [8080, 5353]
        with outside.server(80) as server:
            assert talk(server, inside.open(), (OUTSIDE, 80)) == HOST
        for host_port, port in ((8080, 80), (rootless.ports[2], 90)):
            with inside.server(port) as server:
                talk(server, client.open(), (address, host_port))
        with inside.server(53, socket.SOCK_DGRAM) as server:
            exchange(server, outside.open(socket.SOCK_DGRAM), (HOST, 5353))
        inside.close()
    assert not Path(f"/proc/{rootless.helper}").exists()


def test_a_taken_port_is_refused(program: str, outside: Netspace, place: Path) -> None:
    with outside.host.server(8080), Rootless(place, program, "8080:80") as rootless:  # type: ignore[attr-defined]
        assert rootless.said.startswith("refused port 8080/tcp of 0.0.0.0 is in use")


def test_slirp4netns_ends_when_its_owner_is_killed(outside: Netspace, place: Path) -> None:
    if shutil.which("slirp4netns") is None:
        pytest.skip("slirp4netns is not installed")
    rootless = Rootless(place, "slirp4netns")
    assert rootless.helper, rootless.said
    fd = os.pidfd_open(rootless.helper)
    rootless.process.kill()
    rootless.process.communicate()
    assert select.select([fd], [], [], 10)[0], "it still runs"
    os.close(fd)
    os.kill(rootless.container, signal.SIGKILL)


def test_what_the_helper_says_is_told_when_it_fails(program: str, outside: Netspace, place: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(HostError, match=rf"{program} failed: .*\w"):
        usermode.start(ended.pid, str(place), program=program)


def test_without_a_helper_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert usermode.available() is None
    with pytest.raises(HostError, match="only through slirp4netns or pasta"):
        usermode.start(os.getpid(), str(tmp_path))
