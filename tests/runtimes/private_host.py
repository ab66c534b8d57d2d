"""A host of its own for another engine and all that it starts: mounts, network and processes that end with it.

/run and /var/lib are empty there, so what an engine keeps where it is told nothing is neither found nor left. Whatever
still runs is killed by the kernel when this object closes, or when the tests are killed.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

from engine_rig import PROGRAM, add_image

SET_UP = "mount -t tmpfs run /run && mount -t tmpfs lib /var/lib && ip link set lo up && echo ready && read end"
"""What its first process does: it ends with its standard input."""
WISHES = {"Env": ["PATH=/bin", "COLOUR=blue"], "Cmd": ["sh", "-c", "echo $COLOUR"]}
SECONDS = 120.0
"""Nothing takes that long unless it hangs."""


class PrivateHost:
    """Namespaces in which commands are run; a context manager."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> PrivateHost:
        self._first = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", SET_UP],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == b"ready\n"
        self._proc = Path(f"/proc/{self._first.pid}")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._first.stdin is not None
        assert self._first.stdout is not None
        self._first.stdin.close()
        self._first.stdout.close()
        for process in (self._first, *self._daemons):
            process.wait(SECONDS)

    def command(self, *words: str) -> list[str]:
        """The same command, run in there."""
        spaces = {"mount": "mnt", "net": "net", "pid": "pid_for_children"}
        return ["nsenter", *(f"--{name}={self._proc}/ns/{file}" for name, file in spaces.items()), "--", *words]

    def __call__(self, *words: str, code: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command that must end with ``code``."""
        if "input" not in options:
            options["stdin"] = subprocess.DEVNULL
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, check=False, timeout=SECONDS,
            env=self._environment, **options,
        )  # fmt: skip
        assert code is None or done.returncode == code, (words, done)
        return done

    def typed(self, *words: str, code: int = 0) -> str:
        """What a command that must end with ``code`` shows on a terminal of 33 rows and 77 columns."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        with subprocess.Popen(
            self.command(*words), stdin=slave, stdout=slave, stderr=slave, env=self._environment, start_new_session=True
        ) as process:
            os.close(slave)
            shown = b"".join(iter(lambda: _read(master), b"")).decode()
            os.close(master)
            assert process.wait(SECONDS) == code, shown
        return shown

    def serve(self, log: Path, *words: str) -> None:
        """Start a daemon; it ends with this host."""
        with log.open("wb") as output:
            self._daemons.append(subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment
            ))  # fmt: skip

    def path(self, path: str) -> Path:
        """A path of there."""
        return Path(f"{self._proc}/root{path}")

    def processes(self) -> list[str]:
        """The names of all that runs but the first."""
        space = os.readlink(self._proc / "ns/pid_for_children")
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            try:
                state = (each / "stat").read_text().rpartition(")")[2].split()
                if os.readlink(each / "ns/pid") == space and state[0] != "Z" and int(state[1]) != self._first.pid:
                    found.append((each / "comm").read_text().strip())
            except OSError:  # gone, or a zombie
                continue
        return sorted(found)

    def mounts(self, below: Path) -> list[str]:
        return [
            line for line in (self._proc / "mounts").read_text().splitlines() if line.split()[1].startswith(f"{below}/")
        ]

    def states(self, root: str = "/run/isomark-oci") -> list[str]:
        """What isomark-oci keeps of containers."""
        there = self.path(root)
        return sorted(set(os.listdir(there)) - {"seccomp"}) if there.is_dir() else []


def export_image(state: Path, form: str) -> Path:
    """A busybox as image ``small:1``, in an archive that isomark writes."""
    add_image(state, "small:1", WISHES)
    archive = state / f"small.{form}"
    environment = {**os.environ, "ISOMARK_STATE": str(state), "PYTHONPATH": str(Path(__file__).parents[2])}
    words = ["image", "export", "small:1", "--output", str(archive), "--format", form]
    subprocess.run([sys.executable, "-c", PROGRAM, *words], check=True, env=environment, timeout=SECONDS)
    return archive


def _read(master: int) -> bytes:
    try:
        return os.read(master, 4096)
    except OSError:  # EIO: nobody has the other end any more
        return b""
