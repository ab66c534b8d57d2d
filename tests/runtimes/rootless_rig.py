"""An ordinary user with a command line: what the tests of rootless containers start as.

All that the user sees of the host is in a mount namespace of the tests: devices for everybody, lines in /etc, a way to
this Python and to the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_rig import PROGRAM, ROOT, WISHES, Engine, add_image, until

UID = 61000 + os.getpid() % 500
SUBORDINATE = 1_700_000
COUNT = 65536
GROUP = Path(f"/sys/fs/cgroup/isomark-tests-{UID}")
"""The delegated group, as the user sees it."""
_TOOLS = ("newuidmap", "newgidmap", "slirp4netns", "fuse-overlayfs", "nsenter", "setpriv", "unshare")
_DEVICES = """
mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse
mknod -m 666 tun c 10 200; mount --bind tun /dev/net/tun
mount -t overlay -o lowerdir=/etc,upperdir=upper,workdir=work overlay /etc
"""
_ONLY_VERSION_2 = """
mkdir unified; mount -t cgroup2 cgroup2 unified
umount -R /sys/fs/cgroup; mount --move unified /sys/fs/cgroup
"""


class User(Engine):
    """The command line as user ``UID`` types it; ``extra`` is added to the environment."""

    def __init__(self, home: Path, holder: int, group: Path | None) -> None:
        super().__init__(home / "state")
        self.home = home
        self.extra: dict[str, str] = {}
        self.path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        self._holder = holder
        self._group = group

    def as_user(self, *command: str) -> list[str]:
        """``command`` as the user."""
        given = {
            "HOME": str(self.home), "PATH": self.path, "ISOMARK_STATE": str(self.state), "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{ROOT}:{ROOT}/tests:{ROOT}/tests/runtimes", **self.extra,
        }  # fmt: skip
        words = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "env", "-i"]
        words += [*(f"{name}={value}" for name, value in given.items()), *command]
        if self._group is not None:
            words = ["sh", "-c", f'echo $$ > {self._group}/cgroup.procs; exec "$@"', "sh", *words]
        return ["nsenter", "--mount", "--target", str(self._holder), *words]

    def command(self, *arguments: str, group: str = "container") -> list[str]:
        return self.as_user(sys.executable, "-c", PROGRAM, group, *arguments)


def processes() -> list[str]:
    """The command lines of the processes of the user and the subordinate ids."""
    ours = {UID, *range(SUBORDINATE, SUBORDINATE + COUNT)}
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid in ours:
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def add_images(state: str) -> None:
    """Have ``busy`` and ``wishes``: for the user to call."""
    Path(state).mkdir()
    add_image(Path(state), "busy:latest", {"Env": ["PATH=/bin"], "Cmd": ["sh"]})
    add_image(Path(state), "wishes:latest", WISHES)


@contextmanager
def open_user(*, subordinate: bool, delegated: bool = False) -> Iterator[User]:
    """A user with the images ``busy`` and ``wishes``; with ``delegated`` on a host of version 2 cgroups alone."""
    if lacking := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(lacking)}: apt-get install uidmap slirp4netns fuse-overlayfs util-linux")
    with tempfile.TemporaryDirectory(prefix="rootless-") as name:
        top = Path(name)
        top.chmod(0o755)
        home = top / "home"
        for path in (home, top / "stage"):
            path.mkdir()
        os.chown(home, UID, UID)
        holder = _hold(top, subordinate=subordinate, delegated=delegated)
        user = User(home, holder.pid, GROUP if delegated else None)
        try:
            script = f"from rootless_rig import add_images; add_images({str(user.state)!r})"
            made = subprocess.run(
                user.as_user(sys.executable, "-c", script), capture_output=True, text=True, check=False
            )
            assert made.returncode == 0, made.stderr
            yield user
            user.extra = {}
            user.clear()
            assert user.leftovers() == []
            user.done("rm", "busy", "wishes", group="image")
            assert list((user.state / "trees").iterdir()) == []
            until(lambda: not processes(), "no process of the user is left")
        finally:
            if delegated:
                subprocess.run(["nsenter", "-m", "-t", str(holder.pid), "sh", "-c", _DROP_GROUP], check=True)
            holder.communicate()


_DROP_GROUP = f"for d in $(find {GROUP} -depth -type d); do rmdir $d; done"


def _hold(top: Path, *, subordinate: bool, delegated: bool) -> subprocess.Popen[bytes]:
    """A process in the mount namespace, which ends with its input."""
    script = [
        "set -e",
        f"cd {top}/stage",
        "mount -t tmpfs tmpfs .",
        "cd $PWD",
        "mkdir upper work",
        _open_ways(),
        _DEVICES,
    ]
    if subordinate:
        script += [
            f"echo tester:x:{UID}:{UID}::{top}/home:/bin/sh >> /etc/passwd",
            f"for file in /etc/subuid /etc/subgid; do echo tester:{SUBORDINATE}:{COUNT} >> $file; done",
        ]
    if delegated:
        script += [_ONLY_VERSION_2, f"mkdir {GROUP}", f"chown -R {UID} {GROUP}"]
    script += ["cd /", "echo ready", "exec cat"]
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", "\n".join(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    if holder.stdout.readline() != b"ready\n":
        holder.communicate()
        pytest.fail("the user's mount namespace cannot be made")
    return holder


def _open_ways() -> str:
    """Commands after which everybody gets to this Python and the checkout, and to nothing else that was closed."""
    closed: dict[Path, list[Path]] = {}
    for needed in dict.fromkeys(map(Path, (sys.base_prefix, sys.prefix, ROOT))):
        above = [path for path in reversed(needed.parents) if not path.stat().st_mode & 0o001]
        if above:
            closed.setdefault(above[0], []).append(needed)
    lines = []
    for number, (top, paths) in enumerate(closed.items()):
        kept = [(f"kept-{number}-{index}", path) for index, path in enumerate(paths)]
        lines += [f"mkdir {name}; mount --rbind {path} {name}" for name, path in kept]
        lines += [f"mount -t tmpfs -o mode=755 tmpfs {top}"]
        lines += [f"mkdir -p {path}; mount --rbind {name} {path}" for name, path in kept]
    return "\n".join(lines)
