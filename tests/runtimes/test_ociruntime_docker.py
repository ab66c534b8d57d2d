"""Docker runs its containers with isomark-oci: a dockerd of the tests, on an image that isomark wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import PARENT, groups_left, needs, remove_groups, write_script
from engine_rig import require_cgroups, until
from private_host import PrivateHost, export_image
from small_tree import needs_root

from runtimes.container.hierarchy import detect

pytestmark = [needs_root, needs("dockerd", "docker", "containerd", "unshare", "nsenter", "busybox")]

LOOP = "while :; do sleep 0.1; done"


class Docker:
    """dockerd with storage, state, socket and containerd of its own, and no network."""

    def __init__(self, host: PrivateHost, directory: Path) -> None:
        self.host = host
        self.socket = f"unix://{directory}/socket"
        (directory / "daemon.json").write_text("{}")
        host.serve(
            directory / "log", "dockerd", "--host", self.socket, "--config-file", f"{directory}/daemon.json",
            "--data-root", f"{directory}/data", "--exec-root", f"{directory}/exec", "--pidfile", f"{directory}/pid",
            "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--storage-driver=vfs",
            "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", PARENT,
            "--add-runtime", f"isomark={write_script(directory / 'isomark-oci')}", "--default-runtime=isomark",
        )  # fmt: skip
        until(lambda: host(*self.command("version"), code=None).returncode == 0, "dockerd answers")

    def command(self, *words: str) -> list[str]:
        return ["docker", "--host", self.socket, *words]

    def __call__(self, *words: str, code: int = 0, **options: Any) -> str:
        """What a command prints that must end with ``code``."""
        return self.host(*self.command(*words), code=code, **options).stdout

    def run(self, *words: str, code: int = 0) -> str:
        """What a container of its own prints."""
        return self("run", "--rm", "--network", "none", *words, code=code)


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    require_cgroups()
    directory = tmp_path_factory.mktemp("docker")
    archive = export_image(directory / "images", "docker")
    with PrivateHost() as host:
        made = Docker(host, directory)
        made("load", "--input", str(archive))
        yield made
        until(lambda: set(host.processes()) == {"containerd", "dockerd"}, "no shim is left")
        assert [path for path in groups_left(PARENT) if not path.endswith(PARENT)] == []
    remove_groups(PARENT)


def test_run_shows_the_output_and_returns_the_status(docker: Docker) -> None:
    assert docker.run("small:1") == "blue\n"
    assert docker.run("small:1", "sh", "-c", "echo out; exit 7", code=7) == "out\n"
    docker.run("small:1", "/bin/missing", code=127)
    docker.run("small:1", "/bin/plain", code=126)
    docker.run("--memory", "16m", "small:1", "tail", "/dev/zero", code=137)


def test_a_container_lives_in_the_background(docker: Docker) -> None:
    ident = docker("run", "--detach", "--name", "one", "--network", "none", "--memory", "64m", "small:1", "sh", "-c",
                   f"echo out; trap 'exit 4' TERM; {LOOP}").strip()  # fmt: skip
    assert json.loads(docker("inspect", "one"))[0]["HostConfig"]["Runtime"] == "isomark"
    until(lambda: docker("logs", "one") == "out\n", "its output is in the log")
    held = detect().holding("memory")
    assert held is not None
    name = "memory.limit_in_bytes" if held.version == 1 else "memory.max"
    assert Path(held.group(f"{PARENT}/{ident}"), name).read_text() == f"{64 << 20}\n"
    assert docker("exec", "one", "sh", "-c", "echo $COLOUR; exit 9", code=9) == "blue\n"
    docker("pause", "one")
    assert json.loads(docker("inspect", "one"))[0]["State"]["Status"] == "paused"
    docker("unpause", "one")
    docker("stop", "one")
    assert json.loads(docker("inspect", "one"))[0]["State"]["ExitCode"] == 4
    docker("rm", "one")


def test_a_terminal_is_the_containers_own(docker: Docker) -> None:
    words = docker.command("run", "--rm", "-it", "--network", "none", "small:1", "sh", "-c", "tty; exit 5")
    assert docker.host.typed(*words, code=5) == "/dev/pts/0\r\n"
