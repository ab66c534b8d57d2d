"""Another host for libvirt, on this one: a libvirtd of an ordinary user, reached over TCP on loopback.

It knows neither our files nor our processes, may be killed and started again, and its guests are real.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vms.process import find_processes

USER = "nobody"
START_SECONDS = 30.0


class SessionHost:
    """A libvirtd of ``USER``, with everything it writes in ``home``.

    ``settings`` are lines of libvirtd.conf and ``environment`` is the daemon's, both read when it starts.
    """

    def __init__(self, home: Path, auth: str = "none") -> None:
        self.home = home
        self.port = free_port()
        self.uri = f"qemu+tcp://127.0.0.1:{self.port}/session"
        self.socket_uri = f"qemu+unix:///session?socket={home}/run/libvirt/libvirt-sock"
        self.tls_uri = ""
        self.settings = {"listen_tls": "0", "listen_tcp": "1", "listen_addr": '"127.0.0.1"',
                         "tcp_port": f'"{self.port}"', "auth_tcp": f'"{auth}"'}  # fmt: skip
        places = {"HOME": "", "XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache",
                  "XDG_DATA_HOME": "data", "XDG_STATE_HOME": "state"}  # fmt: skip
        self.environment = {variable: str(home / place) for variable, place in places.items()}
        self.environment["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
        self._daemon: subprocess.Popen[bytes] | None = None
        for name in ("", "pool", "run", "config/libvirt"):
            (home / name).mkdir(parents=True, exist_ok=True)
        (home / "config/libvirt/qemu.conf").write_text('stdio_handler = "file"\n')

    def start(self) -> None:
        """Start the daemon and wait until it listens."""
        user = pwd.getpwnam(USER)
        (self.home / "libvirtd.conf").write_text("".join(f"{key} = {one}\n" for key, one in self.settings.items()))
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        log = os.open(self.home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._daemon = subprocess.Popen(
            ["libvirtd", "--listen", "--config", str(self.home / "libvirtd.conf")],
            env=self.environment, cwd=self.home, user=user.pw_uid, group=user.pw_gid, extra_groups=[],
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
        os.close(log)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if is_open(self.port):
                return
            if self._daemon.poll() is not None:
                break
            time.sleep(0.05)
        pytest.fail(f"libvirtd does not listen: {(self.home / 'log').read_text()[-500:]}")

    def define_pool(self) -> None:
        """Give isomark a place: an ordinary user may not write the default one."""
        import libvirt

        connection = libvirt.open(self.socket_uri)
        pool = connection.storagePoolDefineXML(
            f"<pool type='dir'><name>isomark</name><target><path>{self.home / 'pool'}</path></target></pool>", 0
        )
        pool.create(0)
        connection.close()

    def volumes(self) -> list[str]:
        """The files in the pool's directory."""
        return sorted(os.listdir(self.home / "pool"))

    def hypervisors(self) -> list[int]:
        """The QEMU processes of this host: those that have its directory on their command line."""
        home = os.fsencode(self.home)
        return find_processes(lambda words: b"qemu-system" in words[0] and any(home in word for word in words))

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the daemon; its guests are not asked."""
        if self._daemon is not None:
            self._daemon.send_signal(number)
            self._daemon.wait(START_SECONDS)
            self._daemon = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let the daemon stand still for the length of a block."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._daemon.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the daemon and what it left."""
        self.stop(signal.SIGKILL)
        for pid in self.hypervisors():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)


@contextmanager
def session_host(auth: str = "none", prepare: Callable[[SessionHost], None] | None = None) -> Iterator[SessionHost]:
    """Run one for the length of a block, started after ``prepare``; skips where it cannot be had."""
    pytest.importorskip("libvirt")
    if os.geteuid() != 0 or shutil.which("libvirtd", path="/usr/sbin:/sbin:/usr/bin") is None:
        pytest.skip("a second libvirtd needs root and libvirtd")
    host = SessionHost(Path(tempfile.mkdtemp(prefix="isomark-host-")), auth)
    try:
        if prepare is not None:
            prepare(host)
        host.start()
        host.define_pool()
        yield host
    finally:
        host.close()


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_open(port: int) -> bool:
    """Whether somebody listens on loopback's TCP ``port``."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
