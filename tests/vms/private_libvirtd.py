"""A libvirtd of this host beside the shared one, for tests that kill it: root's, with a /run, /var and /etc of its own.

Its guests are processes of this host like those of the shared one, and find their files where everybody does; only
what libvirt keeps for itself lies in a mount namespace that ends with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from session_host import START_SECONDS

_OWN = ("/etc/libvirt", "/run/libvirt", "/var/cache/libvirt", "/var/lib/libvirt")
_MOUNT = "set -e; for place do mount -t tmpfs -o mode=755 isomark-test $place; done; echo mounted; exec sleep infinity"
"""Its arguments are what becomes the daemon's own."""


class PrivateLibvirtd:
    """One in ``home``, reached at ``uri``; ``settings`` are of libvirtd.conf, read when it starts."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.uri = f"qemu+unix:///system?socket={home}/libvirt-sock"
        self._daemon: subprocess.Popen[bytes] | None = None
        # QEMUs stay in our mount namespace, which tells whose they are, and leave no cgroups when both are killed
        (home / "qemu.conf").write_text('stdio_handler = "file"\nnamespaces = []\ncgroup_controllers = []\n')
        self.settings = {"unix_sock_dir": str(home), "auth_unix_rw": "none", "unix_sock_rw_perms": "0777"}
        self._room = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNT, "sh", *_OWN], stdout=subprocess.PIPE
        )
        assert self._room.stdout is not None
        if self._room.stdout.readline() != b"mounted\n":
            self.close()
            pytest.skip("may not mount in a namespace of its own")
        self._inside("cp", str(home / "qemu.conf"), "/etc/libvirt/qemu.conf").wait()

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        import libvirt

        lines = [f'{name} = "{setting}"\n' for name, setting in self.settings.items()]
        (self.home / "libvirtd.conf").write_text("".join(lines))
        pid_file = str(self.home / "pid")
        self._daemon = self._inside("libvirtd", "--config", str(self.home / "libvirtd.conf"), "--pid-file", pid_file)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                libvirt.open(self.uri).close()
            except libvirt.libvirtError as error:
                if time.monotonic() > deadline:
                    pytest.fail(f"libvirtd does not answer: {error} {(self.home / 'log').read_text()[-500:]}")
                time.sleep(0.05)
            else:
                return

    @property
    def pid(self) -> int:
        """The daemon's."""
        assert self._daemon is not None
        return self._daemon.pid

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the daemon by ``number``; its guests are not asked."""
        if self._daemon is not None:
            self._daemon.send_signal(number)
            self._daemon.wait(START_SECONDS)
            self._daemon = None

    def hypervisors(self) -> list[int]:
        """The QEMU processes that it started: those in its mount namespace."""
        room = os.readlink(f"/proc/{self._room.pid}/ns/mnt")
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/mnt") == room and b"qemu-system" in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def close(self) -> None:
        """End the daemon and what it left."""
        self.stop(signal.SIGKILL)
        if self._room.poll() is None:
            for pid in self.hypervisors():
                os.kill(pid, signal.SIGKILL)
        self._room.kill()
        self._room.wait()
        assert self._room.stdout is not None
        self._room.stdout.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def _inside(self, *command: str) -> subprocess.Popen[bytes]:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
        with (self.home / "log").open("ab") as log:
            return subprocess.Popen(
                ["nsenter", "--target", str(self._room.pid), "--mount", *command], env=environment,
                stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
            )  # fmt: skip


@contextmanager
def private_libvirtd(settings: Mapping[str, str] | None = None) -> Iterator[PrivateLibvirtd]:
    """Run one for the length of a block; skips where it cannot be had."""
    pytest.importorskip("libvirt")
    if os.geteuid() != 0 or shutil.which("libvirtd", path="/usr/sbin:/sbin:/usr/bin") is None:
        pytest.skip("a second libvirtd needs root and libvirtd")
    home = Path(tempfile.mkdtemp(prefix="isomark-libvirtd-"))
    home.chmod(0o755)
    daemon = PrivateLibvirtd(home)
    daemon.settings |= settings or {}
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()
