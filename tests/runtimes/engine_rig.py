"""What the tests of the engine's life cycle share: a state directory with images, and the command line run on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import skip_or_fail
from handmade import config_of, file, folder, manifest_of, symlink, tar

from bench.errors import HostError
from bench.journal import Journal
from runtimes.container.cgroup import Group
from runtimes.container.hierarchy import detect
from runtimes.container.resources import Resources
from runtimes.oci.descriptor import CONFIG, MANIFEST, canonical_json
from runtimes.oci.images import Images
from runtimes.oci.layer import store_layer

ROOT = Path(__file__).parent.parent.parent
# fmt: off
APPLETS = (
    "sh", "cat", "chmod", "chown", "cp", "date", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ip",
    "kill", "ln", "ls", "mkdir", "mkfifo", "mknod", "mount", "nc", "nproc", "ps", "pwd", "readlink", "rm", "seq",
    "sleep", "stat", "stty", "tail", "test", "touch", "tr", "true", "tty", "wc", "wget", "yes",
)
# fmt: on
PROGRAM = "from bench.cli import main; main()"
WISHES = {
    "Env": ["PATH=/bin", "COLOUR=blue", "SIZE=small"],
    "Entrypoint": ["/bin/sh", "-c"],
    "Cmd": ["echo $COLOUR; pwd; id -u"],
    "WorkingDir": "/home/user",
    "User": "user",
    "Volumes": {"/data": {}},
    "StopSignal": "SIGUSR1",
    "Labels": {"maker": "tests"},
    "ExposedPorts": {"80/tcp": {}},
    "Healthcheck": {"Test": ["CMD", "true"]},
}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Engine:
    """The command line on a state directory of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.environment = {**os.environ, "ISOMARK_STATE": str(state), "PYTHONPATH": f"{ROOT}"}

    def command(self, *arguments: str, group: str = "container") -> list[str]:
        return [sys.executable, "-c", PROGRAM, group, *arguments]

    def __call__(self, *arguments: str, group: str = "container", **options: Any) -> subprocess.CompletedProcess[str]:
        given = {"capture_output": True, "text": True, "timeout": 60, "env": self.environment}
        if "input" not in options and "stdin" not in options:
            given["stdin"] = subprocess.DEVNULL
        return subprocess.run(self.command(*arguments, group=group), check=False, **{**given, **options})

    def done(self, *arguments: str, group: str = "container", **options: Any) -> str:
        """What a command that must succeed prints."""
        ended = self(*arguments, group=group, **options)
        assert ended.returncode == 0, (arguments, ended.returncode, ended.stdout, ended.stderr)
        return ended.stdout.rstrip("\n")

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """``run --rm`` without a network, unless told otherwise."""
        return self("run", "--rm", "--network", "none", *arguments, **options)

    def out(self, *arguments: str, **options: Any) -> str:
        """What a container that must succeed prints."""
        ended = self.run(*arguments, **options)
        assert ended.returncode == 0, (arguments, ended.returncode, ended.stdout, ended.stderr)
        return ended.stdout.rstrip("\n")

    def start(self, *arguments: str) -> str:
        """The id of a container started in the background."""
        return self.done("run", "-d", "--network", "none", *arguments)

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.command(*arguments), env=self.environment, **{**given, **options})

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.done("inspect", name))[0]
        return found

    def status(self, name: str) -> str:
        return str(self.inspect(name)["State"]["Status"])

    def ids(self) -> list[str]:
        return self.done("ps", "-aq", "--no-trunc").split()

    def clear(self) -> None:
        """Remove every container and volume."""
        if ids := self.ids():
            self.done("rm", "-f", "-v", *ids)
        if names := self.done("ls", "-q", group="volume").split():
            self.done("rm", *names, group="volume")

    def monitor(self, ident: str) -> int:
        """The process that watches over a container."""
        return int(json.loads((self.state / "containers" / ident / "state.json").read_text())["monitor"][0])

    def leftovers(self) -> list[str]:
        """What should not be there when nothing runs and nothing was kept."""
        found = [str(path) for path in (self.state / "owned").glob("*")]
        found += [str(path) for path in (self.state / "containers").glob("*") if path.name != "names"]
        found += [str(path) for path in (self.state / "containers" / "names").glob("*")]
        found += [str(path) for path in (self.state / "volumes").glob(".*")]
        found += [line for line in Path("/proc/mounts").read_text().splitlines() if f"{self.state}/containers" in line]
        return found

    def processes(self) -> list[int]:
        """Monitors and commands of this engine that run."""
        needle = f"ISOMARK_STATE={self.state}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if needle in (path / "environ").read_bytes().split(b"\0") and int(path.name) != os.getpid():
                    found.append(int(path.name))
            except OSError:
                continue
        return found


def cgroups_of(ident: str) -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").rglob(ident) if path.is_dir()]


def add_image(state: Path, name: str, wishes: dict[str, Any]) -> None:
    """An image of a static busybox, and of little else."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox: apt-get install busybox-static")
    images = Images(state)
    members = [
        *(folder(path) for path in ("bin", "data", "etc", "home", "home/user")),
        folder("tmp", 0o1777),
        file("bin/busybox", Path(busybox).read_bytes(), 0o755),
        *(symlink(f"bin/{applet}", "busybox") for applet in APPLETS),
        file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
        file("etc/group", b"root:x:0:\nuser:x:1000:\nextra:x:2000:user\n"),
        file("data/from-image", b"seed\n", uid=1000),
        file("bin/plain", b"no program\n"),
    ]
    layer = store_layer(images.layout, [tar(*members)])
    config = {**config_of([layer.diff_id]), "config": wishes}
    descriptor = images.layout.add(CONFIG, canonical_json(config))
    manifest = canonical_json(manifest_of(descriptor, [layer.descriptor]))
    images.layout.tag(name, images.layout.add(MANIFEST, manifest))
    with Journal(state / "owned") as journal:
        images.tree(images.find(name), journal)


@contextmanager
def open_engine(directory: Path) -> Iterator[Engine]:
    """An engine with the images ``busy`` and ``wishes``; at the end nothing of it may be left."""
    require_cgroups()
    state = directory / "state"
    add_image(state, "busy:latest", {"Env": ["PATH=/bin"], "Cmd": ["sh"]})
    add_image(state, "wishes:latest", WISHES)
    engine = Engine(state)
    try:
        yield engine
    finally:
        engine.clear()
    assert engine.leftovers() == []
    until(lambda: not engine.processes(), "no process of the engine is left")


def require_cgroups() -> None:
    try:
        layout = detect()
        Group(layout, "engine-probe", Resources()).remove()
    except HostError as error:
        skip_or_fail("container", error.message)


def until(true: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"it never came that {what}"
        time.sleep(0.02)
