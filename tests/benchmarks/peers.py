"""Other engines, started from a small process of their own so that our size is not their cost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtimes.security import levels, profile
from runtimes.security.capabilities import NAMES, names

LAUNCHER = r"""
import ctypes, json, os, sys, time
if len(sys.argv) > 1:  # a mount namespace where these are not mounted
    libc = ctypes.CDLL(None)
    assert libc.unshare(0x20000) == 0 and libc.mount(None, b"/", None, 1 << 14 | 1 << 18, None) == 0
    for path in sys.argv[1:]:
        assert libc.umount2(path.encode(), 2) == 0
for line in sys.stdin:
    command = json.loads(line)
    read, write = os.pipe()
    begun = time.monotonic()
    pid = os.posix_spawnp(command[0], command, os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_OPEN, 0, "/dev/null", 0, 0)])
    os.close(write)
    output = b""
    while part := os.read(read, 65536):
        output += part
    os.close(read)
    status = os.waitpid(pid, 0)[1]
    print(json.dumps([begun, time.monotonic(), output.decode(errors="replace"), status]), flush=True)
"""


class Launcher:
    """A small process that starts commands and tells when; a context manager."""

    def __init__(self, *without: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCHER, *without],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, command: Sequence[str]) -> tuple[float, float, str]:
        """When the command was started, when it had ended, and what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(command)) + "\n")
        self._process.stdin.flush()
        begun, ended, output, status = json.loads(self._process.stdout.readline())
        if status != 0:
            raise RuntimeError(f"{' '.join(command)}: status {status}: {output}")
        return begun, ended, output

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def oci_config(root: Path, command: Sequence[str], security: levels.Security, cgroup: str) -> dict[str, Any]:
    """What Docker gives runc for the same container: its default security, limits as ours, no network but loopback."""
    held = [NAMES[NAMES.index(name)] for name in names(security.capabilities["bounding"])]  # type: ignore[index]
    source = json.loads(Path(levels.__file__).with_name("default.json").read_text())
    filters = profile.of_this_host(source, security.capabilities["bounding"])  # type: ignore[index]
    nothing = ["nosuid", "noexec", "nodev"]

    def mount(point: str, kind: str, options: Sequence[str]) -> dict[str, Any]:
        return {"destination": point, "type": kind, "source": kind, "options": list(options)}

    rules = [
        {"allow": rule.allow, "type": rule.kind, "access": rule.access}
        | {key: value for key, value in (("major", rule.major), ("minor", rule.minor)) if value is not None}
        for rule in security.devices or ()
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False, "user": {"uid": 0, "gid": 0}, "args": list(command), "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), held),
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": False},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", nothing),
            mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", [*nothing, "ro"]),
            mount("/dev/mqueue", "mqueue", nothing),
            mount("/dev/shm", "tmpfs", [*nothing, "mode=1777", "size=67108864"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {
                "devices": rules, "memory": {"limit": 512 << 20, "swap": 512 << 20},
                "cpu": {"quota": 100_000, "period": 100_000}, "pids": {"limit": 512},
            },
            "namespaces": [{"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts", "cgroup")],
            "maskedPaths": list(security.masked),
            "readonlyPaths": list(security.readonly),
            "seccomp": filters,
        },
    }  # fmt: skip


def own_config(engine: str, directory: Path, root: Path, command: Sequence[str], cgroup: str) -> dict[str, Any]:
    """What ``ENGINE spec`` proposes: three capabilities, no filter, no limits."""
    directory.mkdir()
    subprocess.run([engine, "spec"], check=True, cwd=directory)
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": list(command)}
    config["root"]["path"] = str(root)
    config["linux"]["cgroupsPath"] = cgroup
    return config


def cgroup2_mounts() -> list[str]:
    """Where version 2 is mounted beside version 1, which crun does not take."""
    rows = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    hybrid = any(row[2] == "cgroup" for row in rows)
    return [row[1] for row in rows if row[2] == "cgroup2"] if hybrid else []


class Docker:
    """A dockerd of our own: private state, socket, containerd and network namespace; a context manager."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """The client."""
        return ["docker", "--host", f"unix://{self._state}/docker.sock"]

    def __enter__(self) -> Docker:
        if shutil.which("dockerd") is None or shutil.which("docker") is None:
            raise RuntimeError("no dockerd here")
        self._state.mkdir()
        (self._state / "daemon.json").write_text("{}")
        log = (self._state / "log").open("wb")
        self._daemon = subprocess.Popen(
            ["unshare", "--net", "dockerd", "--host", f"unix://{self._state}/docker.sock",
             "--data-root", str(self._state / "data"), "--exec-root", str(self._state / "exec"),
             "--pidfile", str(self._state / "pid"), "--storage-driver=overlay2",
             "--config-file", str(self._state / "daemon.json"), "--containerd-namespace", "isomark-bench"],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        for _ in range(150):
            time.sleep(0.2)
            if self._daemon.poll() is not None:
                break
            if subprocess.run([*self.command, "version"], capture_output=True, check=False).returncode == 0:
                return self
        self.__exit__()
        raise RuntimeError(f"dockerd does not start: {(self._state / 'log').read_text()[-300:]}")

    def import_tree(self, tree: Path) -> None:
        """Make the image ``bench``."""
        with subprocess.Popen(["tar", "-C", str(tree), "-c", "."], stdout=subprocess.PIPE) as packed:
            subprocess.run(
                [*self.command, "import", "-", "bench"], stdin=packed.stdout, capture_output=True, check=True
            )

    def __exit__(self, *_: object) -> None:
        if self._daemon is None:
            return
        self._daemon.send_signal(signal.SIGTERM)
        try:
            self._daemon.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._daemon.pid, signal.SIGKILL)
            self._daemon.wait()
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            point = line.split()[1]
            if point.startswith(str(self._state)):
                subprocess.run(["umount", "-l", point], check=False)
        for group in Path("/sys/fs/cgroup").glob("*/docker"):
            if not [each for each in group.iterdir() if each.is_dir()]:
                group.rmdir()


def runc_like(engine: str, bundle: Path, state: Path, number: int) -> list[str]:
    """``ENGINE run`` with a state directory of ours."""
    return [engine, "--root", str(state), "run", "--bundle", str(bundle), f"bench-{Path(engine).name}-{number}"]


def available(names: Sequence[str]) -> Mapping[str, str | None]:
    """Name -> path or ``None``."""
    return {name: shutil.which(name) for name in names}
