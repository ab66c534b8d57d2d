"""podman runs its containers with isomark-oci: Debian's podman and conmon, on an image that isomark wrote."""

from __future__ import annotations

import json
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

pytestmark = [needs_root, needs("podman", "conmon", "unshare", "nsenter", "busybox")]

CONFIGURATION = """\
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
"""
"""Without CAP_SYS_RESOURCE no runtime can raise limits as podman's own defaults demand."""
PLUGINS = ("/usr/lib/cni/bridge", "/usr/lib/podman/netavark", "/usr/libexec/podman/netavark")
LOOP = "while :; do sleep 0.1; done"


class Podman:
    """podman with storage, state and runtime of its own."""

    def __init__(self, host: PrivateHost, directory: Path, runtime: Path) -> None:
        self.host = host
        self.directory = directory
        self.runtime = runtime

    def command(self, *words: str) -> list[str]:
        own = ["--root", "root", "--runroot", "runroot", "--tmpdir", "tmp"]
        places = [f"{self.directory}/{word}" if not word.startswith("--") else word for word in own]
        return ["podman", *places, "--storage-driver", "vfs", "--runtime", str(self.runtime), *words]

    def __call__(self, *words: str, code: int = 0, **options: Any) -> str:
        """What a command prints that must end with ``code``."""
        return self.host(*self.command(*words), code=code, **options).stdout

    def run(self, *words: str, code: int = 0, **options: Any) -> str:
        """The same for a container of its own, without a network."""
        return self(*self.running("--rm", *words), code=code, **options)

    def refuse(self, *words: str, code: int) -> str:
        """The error of a container that must not start."""
        return self.host(*self.command(*self.running("--rm", *words)), code=code).stderr

    def running(self, *words: str) -> list[str]:
        return ["run", "--network", "none", "--cgroup-parent", PARENT, *words]

    def start(self, *words: str) -> str:
        """The id of a container in the background."""
        return self(*self.running("--detach", "--name", "one", *words)).strip()

    def inspect(self, name: str = "one") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", name))[0]
        return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    require_cgroups()
    directory = tmp_path_factory.mktemp("podman")
    (directory / "containers.conf").write_text(CONFIGURATION)
    with PrivateHost({"CONTAINERS_CONF": f"{directory}/containers.conf"}) as host:
        made = Podman(host, directory, write_script(directory / "isomark-oci"))
        loaded = made("load", "--input", str(export_image(directory / "state", "oci")))
        made("tag", loaded.rpartition(" ")[2].strip(), "small")
        yield made
    remove_groups(PARENT)


@pytest.fixture
def podman(installed: Podman) -> Iterator[Podman]:
    """The same for each test, which leaves nothing but what ``podman rm`` and ``podman volume rm`` remove."""
    yield installed
    installed("rm", "--all", "--force", "--time", "0")
    installed("volume", "rm", "--all", "--force")
    until(lambda: not installed.host.processes(), "no process is left")
    assert installed.host.states() == []
    assert installed.host.mounts(installed.directory) == []
    assert [path for path in groups_left(PARENT) if "libpod-" in path and "conmon" not in path] == []


def limit(ident: str, controller: str, version_1: str, version_2: str) -> str:
    """A control file of a container's group."""
    held = detect().holding(controller)
    assert held is not None
    return (
        Path(held.group(f"{PARENT}/libpod-{ident}"), version_1 if held.version == 1 else version_2).read_text().strip()
    )


def test_run_shows_the_output_and_returns_the_status(podman: Podman) -> None:
    assert podman.run("small") == "blue\n"
    assert podman.run("small", "sh", "-c", "echo out; echo err >&2; exit 7", code=7) == "out\n"
    assert podman.run("--interactive", "small", "cat", input="in\n") == "in\n"


def test_what_cannot_be_run_is_told_as_by_runc(podman: Podman, tmp_path: Path) -> None:
    assert "executable file not found in $PATH" in podman.refuse("small", "missing", code=127)
    assert "no such file or directory" in podman.refuse("small", "/bin/missing", code=127)
    assert "permission denied" in podman.refuse("small", "/bin/plain", code=126)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"no program\n")
    garbage.chmod(0o755)  # only its execution tells
    told = podman.refuse("--volume", f"{garbage}:/garbage", "small", "/garbage", code=126)
    assert "cannot run /garbage: Exec format error" in told
    assert "ulimit -Ha" in podman.refuse("--ulimit", "nofile=1048577:1048577", "small", code=126)


def test_a_container_lives_in_the_background(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("from the host\n")
    podman.start("--volume", f"{tmp_path}:/shared:ro", "--volume", "named:/kept", "small", "sh", "-c",
                 f"echo out; echo err >&2; trap 'exit 4' TERM; {LOOP}")  # fmt: skip
    found = podman.inspect()
    assert found["OCIRuntime"] == str(podman.runtime)
    assert found["State"]["Status"] == "running"
    until(lambda: podman("logs", "one") == "out\n", "its output is in the log")
    assert podman("exec", "one", "cat", "/shared/shared") == "from the host\n"
    podman("exec", "one", "touch", "/shared/mine", code=1)
    podman(
        "exec",
        "--user",
        "1000:1000",
        "--env",
        "A=b",
        "one",
        "sh",
        "-c",
        'test "$(id -u) $A" = "1000 b"; exit $(($?+9))',
        code=9,
    )
    podman("exec", "one", "/bin/missing", code=127)
    podman("exec", "one", "/bin/plain", code=126)
    podman("exec", "--detach", "one", "touch", "/kept/detached")
    until(lambda: podman("exec", "one", "ls", "/kept") == "detached\n", "it was executed")
    assert podman("top", "one", "args").splitlines()[1].startswith("sh -c")
    podman("stop", "one")
    assert podman.inspect()["State"]["ExitCode"] == 4
    podman("start", "one")
    assert podman("exec", "one", "ls", "/kept") == "detached\n"
    podman("kill", "--signal", "KILL", "one")
    assert podman("wait", "one") == "137\n"
    podman("rm", "one")
    assert podman.host.states() == []


def test_limits_are_those_of_its_cgroup(podman: Podman) -> None:
    ident = podman.start("--memory", "64m", "--pids-limit", "50", "small", "sh", "-c", LOOP)
    assert limit(ident, "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert limit(ident, "pids", "pids.max", "pids.max") == "50"
    assert "/ 67.11MB" in podman("stats", "--no-stream", "--format", "{{.MemUsage}}", "one")
    podman("update", "--memory", "32m", "one")
    assert limit(ident, "memory", "memory.limit_in_bytes", "memory.max") == str(32 << 20)
    podman("rm", "--force", "--time", "0", "one")
    podman.run("--memory", "16m", "small", "tail", "/dev/zero", code=137)


def test_a_paused_container_stands_still(podman: Podman) -> None:
    podman.start("small", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.01; done")
    count = Path(podman("mount", "one").strip(), "count")
    until(count.exists, "it counts")
    podman("pause", "one")
    assert podman.inspect()["State"]["Status"] == "paused"
    before = podman.host("cat", str(count)).stdout
    time.sleep(0.2)
    assert podman.host("cat", str(count)).stdout == before
    podman("unpause", "one")
    until(lambda: podman.host("cat", str(count)).stdout not in ("", before), "it goes on")
    podman("umount", "one")


def test_a_terminal_is_the_containers_own(podman: Podman) -> None:
    size = "for i in $(seq 300); do [ \"$(stty size)\" = '33 77' ] && break; sleep 0.1; done; stty size; tty; exit 5"
    shown = podman.host.typed(*podman.command(*podman.running("--rm", "-it", "small", "sh", "-c", size)), code=5)
    assert shown.splitlines()[-2:] == ["33 77", "/dev/pts/0"]
    assert podman.run("--tty", "small", "sh", "-c", "test -t 1 && ls /dev/console") == "/dev/console\n"
    podman.start("small", "sh", "-c", LOOP)
    assert podman.host.typed(*podman.command("exec", "-it", "one", "tty")) == "/dev/pts/0\r\n"


def test_confinement_is_what_podman_asks_for(podman: Podman) -> None:
    shown = podman.run("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--hostname", "named",
                       "small", "sh", "-c", "hostname; touch /x; cat /proc/self/status")  # fmt: skip
    lines = shown.splitlines()
    assert lines[0] == "named"
    fields = dict(line.split(":\t", 1) for line in lines[1:] if ":\t" in line)
    assert (fields["CapEff"], fields["CapBnd"], fields["NoNewPrivs"], fields["Seccomp"]) == (
        "0" * 16,
        "0" * 16,
        "1",
        "2",
    )
    assert podman.run("--uidmap", "0:100000:1000", "small", "cat", "/proc/self/uid_map").split() == [
        "0",
        "100000",
        "1000",
    ]
    assert podman.run("--sysctl", "net.ipv4.ip_forward=1", "small", "cat", "/proc/sys/net/ipv4/ip_forward") == "1\n"


def test_the_network_is_that_which_podman_made(podman: Podman) -> None:
    assert podman.run("small", "ip", "-o", "link").count("\n") == 1
    here = podman.host("readlink", "/proc/self/ns/net").stdout
    assert podman("run", "--rm", "--cgroup-parent", PARENT, "--network", "host", "small", "readlink",
                  "/proc/self/ns/net") == here  # fmt: skip


@pytest.mark.skipif(
    not any(Path(each).exists() for each in PLUGINS), reason="needs containernetworking-plugins or netavark"
)
def test_a_published_port_leads_into_the_container(podman: Podman) -> None:
    podman("run", "--detach", "--name", "one", "--cgroup-parent", PARENT, "--publish", "127.0.0.1:8080:80", "small",
           "sh", "-c", "while :; do echo hello | nc -l -p 80; done")  # fmt: skip
    until(lambda: podman.host("busybox", "nc", "127.0.0.1", "8080", code=None).stdout == "hello\n", "it answers")
