"""containerd's shim runs containers with isomark-oci: Debian's containerd and ctr, on an image that isomark wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import PARENT, groups_left, needs, remove_groups, write_script
from engine_rig import require_cgroups, until
from private_host import PrivateHost, export_image
from small_tree import needs_root

from runtimes.container.hierarchy import detect

pytestmark = [needs_root, needs("containerd", "containerd-shim-runc-v2", "ctr", "unshare", "nsenter", "busybox")]

NAMESPACE = PARENT.strip("/")
"""Below a group of this name ctr puts its containers."""
IMAGE = "small:1"
LOOP = "while :; do sleep 0.1; done"
STATES = f"/run/containerd/runc/{NAMESPACE}"


class Containerd:
    """containerd with storage, state and socket of its own."""

    def __init__(self, host: PrivateHost, directory: Path) -> None:
        self.host = host
        self.directory = directory
        self.runtime = write_script(directory / "isomark-oci")
        configuration = directory / "config.toml"
        configuration.write_text(
            f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{directory}/socket"\n'
            f'[plugins."io.containerd.internal.v1.opt"]\npath = "{directory}/opt"\n'
        )
        host.serve(directory / "log", "containerd", "--config", str(configuration))
        until(lambda: self.host(*self.command("version"), code=None).returncode == 0, "containerd answers")

    def command(self, *words: str) -> list[str]:
        return ["ctr", "--address", f"{self.directory}/socket", "--namespace", NAMESPACE, *words]

    def __call__(self, *words: str, code: int = 0, **options: Any) -> str:
        """What a command prints that must end with ``code``."""
        return self.host(*self.command(*words), code=code, **options).stdout

    def running(self, *words: str) -> list[str]:
        return ["run", "--runtime", "io.containerd.runc.v2", "--runc-binary", str(self.runtime), *words]

    def run(self, *words: str, code: int = 0) -> str:
        """What a container of its own prints."""
        return self(*self.running("--rm", IMAGE, "one", *words), code=code)

    def refuse(self, *words: str) -> str:
        """The error of a container that must not start."""
        return self.host(*self.command(*self.running("--rm", IMAGE, "one", *words)), code=1).stderr

    def start(self, *options: str, script: str = LOOP) -> None:
        self(*self.running("--detach", *options, IMAGE, "one", "sh", "-c", script))

    def execute(self, *words: str, code: int = 0) -> str:
        return self("task", "exec", "--exec-id", "more", "one", *words, code=code)

    def status(self) -> str:
        return self("task", "list").splitlines()[1].split()[2]

    def remove(self) -> None:
        until(lambda: self.status() == "STOPPED", "it has ended")
        self("task", "rm", "one", code=0)
        self("container", "rm", "one")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    require_cgroups()
    directory = tmp_path_factory.mktemp("ctr")
    archive = export_image(directory / "images", "oci")
    with PrivateHost() as host:
        made = Containerd(host, directory)
        made("image", "import", str(archive))
        yield made
    remove_groups(PARENT)


@pytest.fixture
def containerd(installed: Containerd) -> Iterator[Containerd]:
    """The same for each test, which leaves nothing: no container, shim, mount or group."""
    yield installed
    if "one" in installed("container", "list", "--quiet"):
        installed.host(*installed.command("task", "rm", "--force", "one"), code=None)
        installed("container", "rm", "one")
    until(lambda: set(installed.host.processes()) == {"containerd"}, "no shim is left")
    assert installed.host.states(STATES) == []
    assert installed.host.mounts(installed.directory) == []
    assert [path for path in groups_left(PARENT) if not path.endswith(PARENT)] == []


def test_run_shows_the_output_and_returns_the_status(containerd: Containerd) -> None:
    assert containerd.run() == "blue\n"
    assert containerd.run("sh", "-c", "echo out; exit 7", code=7) == "out\n"


def test_what_cannot_be_run_is_told_as_by_runc(containerd: Containerd) -> None:
    assert "OCI runtime create failed: exec: '/bin/missing': no such file" in containerd.refuse("/bin/missing")
    assert "OCI runtime create failed: exec: '/bin/plain': permission denied" in containerd.refuse("/bin/plain")


def test_a_container_lives_in_the_background(containerd: Containerd) -> None:
    containerd.start("--env", "A=b", script=f"trap 'exit 4' TERM; {LOOP}")
    assert containerd.status() == "RUNNING"
    assert containerd.host.states(STATES) == ["one"]
    assert containerd.execute("sh", "-c", "echo $A $COLOUR; exit 9", code=9) == "b blue\n"
    failed = containerd.host(*containerd.command("task", "exec", "--exec-id", "more", "one", "/bin/missing"), code=1)
    assert "OCI runtime exec failed: exec: '/bin/missing': no such file" in failed.stderr
    assert len(containerd("task", "ps", "one").splitlines()) >= 2
    containerd("task", "kill", "--signal", "SIGTERM", "one")
    until(lambda: containerd.status() == "STOPPED", "it has ended")
    removed = containerd.host(*containerd.command("task", "rm", "one"))
    assert "exit code 4" in removed.stderr
    containerd("container", "rm", "one")


def test_all_processes_are_killed_at_once(containerd: Containerd) -> None:
    containerd.start(script=f"sleep 1000 & {LOOP}")
    containerd("task", "kill", "--all", "--signal", "KILL", "one")
    containerd.remove()


def test_a_limit_is_that_of_its_cgroup(containerd: Containerd) -> None:
    containerd.start("--memory-limit", str(64 << 20))
    held = detect().holding("memory")
    assert held is not None
    name = "memory.limit_in_bytes" if held.version == 1 else "memory.max"
    assert Path(held.group(f"{PARENT}/one"), name).read_text() == f"{64 << 20}\n"
    assert "pids.current" in containerd("task", "metrics", "one")


def test_a_paused_container_stands_still(containerd: Containerd, tmp_path: Path) -> None:
    containerd.start(
        "--mount", f"type=bind,src={tmp_path},dst=/data,options=rbind:rw",
        script="i=0; while :; do i=$((i+1)); echo $i > /data/new; mv /data/new /data/count; sleep 0.01; done",
    )  # fmt: skip
    count = tmp_path / "count"
    until(count.exists, "it counts")
    containerd("task", "pause", "one")
    assert containerd.status() == "PAUSED"
    before = count.read_text()
    time.sleep(0.2)
    assert count.read_text() == before
    containerd("task", "resume", "one")
    assert containerd.status() == "RUNNING"
    until(lambda: count.read_text() != before, "it goes on")


def test_a_terminal_is_the_containers_own(containerd: Containerd) -> None:
    script = "test -t 0 && tty; ls /dev/console; exit 5"
    shown = containerd.host.typed(
        *containerd.command(*containerd.running("--rm", "--tty", IMAGE, "one", "sh", "-c", script)), code=5
    )
    assert shown.split() == ["/dev/pts/0", "/dev/console"]
    containerd.start()
    words = containerd.command("task", "exec", "--exec-id", "more", "--tty", "one", "tty")
    assert "/dev/pts/0" in containerd.host.typed(*words)
