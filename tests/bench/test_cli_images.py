"""``isomark image``, as people run it: against a real registry, in a pipe, on a terminal, many at once, and killed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import registries
from registries import Certificates, Proxy, Server, auths, docker_config

from runtimes.oci.platform import Platform

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("ISOMARK_KILLS", "8"))


class Command:
    """Runs ``isomark`` with a state directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.docker = directory / "docker"
        self.environment = {
            **os.environ,
            "ISOMARK_STATE": str(self.state),
            "DOCKER_CONFIG": str(self.docker),
            "COLUMNS": "200",
        }

    def arguments(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "bench.cli", *arguments]

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.arguments("image", *arguments), cwd=ROOT, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
        )  # fmt: skip

    def __call__(self, *arguments: str, given: bytes = b"", status: int = 0) -> str:
        ended = subprocess.run(
            self.arguments("image", *arguments), cwd=ROOT, env=self.environment, input=given, capture_output=True,
            check=False,
        )  # fmt: skip
        assert ended.returncode == status, (ended.stdout + ended.stderr).decode()
        return (ended.stderr if status else ended.stdout).decode()

    def blobs(self) -> list[Path]:
        return sorted((self.state / "images/blobs").glob("*/*"))

    def assert_all_blobs_right(self) -> None:
        for path in self.blobs():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def root_file_system(*names: str, size: int = 2**18) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as writer:
        for name in names:
            info = tarfile.TarInfo(name)
            data = random.Random(name).randbytes(size)
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))
    return output.getvalue()


@pytest.fixture
def isomark(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registries.registry(tmp_path_factory.mktemp("plain")) as server:
        yield server


@pytest.fixture
def proxy(plain: Server) -> Iterator[Proxy]:
    with Proxy(plain.host).running() as running:
        yield running


@pytest.fixture
def image(plain: Server, tmp_path: Path) -> str:
    """An image of four layers in the registry; the name of its repository."""
    maker = Command(tmp_path / "maker")
    layout = tmp_path / "layout"
    layers = [root_file_system(f"file{number}", size=2**21) for number in range(4)]
    _write_layout(layout, layers)
    maker("import", str(layout), "four:1")
    maker("push", "four:1", f"{plain.host}/four:1", "--insecure")
    return "four:1"


def _write_layout(layout: Path, layers: list[bytes], architecture: str = Platform.here().architecture) -> None:
    """An OCI layout by hand, so that the test does not use what it tests."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    described = [put(layer, "application/vnd.oci.image.layer.v1.tar") for layer in layers]
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in described]},
        "history": [
            {"created": "2026-01-02T03:04:05Z", "created_by": "step \x1b[31mone\x07"},
            {"created": "2026-01-02T03:04:05Z", "created_by": "ENV a=b", "empty_layer": True},
            *({"created_by": f"step {number}"} for number in range(3)),
        ],
    }
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": put(json.dumps(config).encode(), f"{kind}.config.v1+json"),
        "layers": described,
    }
    entry = put(json.dumps(manifest).encode(), f"{kind}.manifest.v1+json")
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def test_an_image_s_life_from_import_to_removal(isomark: Command, tmp_path: Path) -> None:
    certificates = Certificates.make(tmp_path / "certificates")
    with registries.registry(tmp_path / "registry", certificates=certificates, password=True) as server:
        docker_config(isomark.docker, **auths(server.host))
        name = f"{server.host}/team/app:1"
        tls = ("--ca-file", str(certificates.authority))
        assert isomark("import", "-", "mine", given=root_file_system("a", "b")) == "mine:latest\n"
        assert isomark("tag", "mine", name) == f"{name}\n"
        pushed = isomark("push", name, *tls)
        assert re.fullmatch(rf"{re.escape(name)}@sha256:[0-9a-f]{{64}}\n", pushed)
        identity = json.loads(isomark("inspect", name))[0]["id"]
        assert isomark("rm", "mine", name).splitlines()[:2] == ["untagged mine:latest", f"untagged {name}"]
        assert isomark.blobs() == []
        assert isomark("pull", name, *tls) == pushed
        assert isomark("pull", pushed.strip().replace(":1@", "@"), *tls).startswith(f"{server.host}/team/app@sha256")
        found = json.loads(isomark("inspect", identity[7:19]))[0]
        assert found["id"] == identity
        assert sorted(path.name for path in Path(found["tree"]).iterdir()) == ["a", "b"]
        remote = json.loads(isomark("inspect", "--remote", name, *tls))[0]
        assert remote["digest"] == found["digest"]
        assert remote["referrers"] == []
    isomark("export", name, "-o", str(tmp_path / "out.tar"), "--format", "docker")
    isomark("rm", "--force", identity[7:])
    assert isomark("ls").splitlines() == ["image   id   platform   created   compressed   unpacked"]
    assert isomark("import", str(tmp_path / "out.tar")) == f"{name}\n"
    assert json.loads(isomark("inspect", name))[0]["id"] == identity


def test_lists_are_columns_in_a_pipe_and_json_on_demand(isomark: Command, proxy: Proxy, image: str) -> None:
    name = f"{proxy.host}/{image}"
    isomark("pull", name, "--insecure", "--quiet")
    head, row = isomark("ls").splitlines()
    assert head.split() == ["image", "id", "platform", "created", "compressed", "unpacked"]
    assert head.index("id") == re.search(r"[0-9a-f]{12}", row).start()  # type: ignore[union-attr]
    listed = json.loads(isomark("ls", "--format", "json"))
    assert [one["reference"] for one in listed] == [name]
    assert listed[0]["unpacked_bytes"] == 4 * 2**21
    assert isomark("ls", "-q") == f"{name}\n"
    history = isomark("history", name)
    assert re.findall(r"step \d", history) == ["step 2", "step 1", "step 0"]
    assert "step  [31mone" in history
    assert "\x1b" not in history
    assert "\x07" not in history
    assert "no layer" in history
    steps = json.loads(isomark("history", name, "--format", "json"))
    assert [step["layer"] is None for step in steps] == [False, False, False, True, False]
    assert "no format" in isomark("ls", "--format", "yaml", status=2)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["pull", "UPPER"], 2, "capital letters"),
        (["pull", "example.org/a", "--insecure"], 2, "only for registries on this host"),
        (["pull", "localhost:1/a", "--ca-file", "/nonexistent"], 2, "cannot use the certificates"),
        (["pull", "a", "--platform", "a/b/c/d"], 2, "not a platform"),
        (["inspect", "absent"], 1, "isomark image pull absent"),
        (["push", "absent"], 1, "no image absent"),
        (["rm", "absent", "also-absent"], 1, "no image also-absent"),
        (["rm", "absent"], 1, "isomark image ls"),
        (["tag", "absent", "b"], 1, "no image absent"),
        (["import", "/nonexistent"], 2, "cannot read"),
        (["import", __file__, "a"], 1, "neither an OCI layout nor a tar"),
        (["export", "absent"], 1, "no image absent"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_hint(isomark: Command, arguments: list[str], status: int, said: str) -> None:
    text = isomark(*arguments, status=status)
    assert said in text
    assert "Traceback" not in text
    assert text.startswith("isomark: ")
    assert "hint: " in text


def test_an_image_for_another_platform_is_only_pulled_if_that_is_asked_for(
    isomark: Command, plain: Server, image: str, tmp_path: Path
) -> None:
    own = Platform.here().architecture
    name = f"{plain.host}/{image}"
    said = isomark("pull", name, "--insecure", "--platform", "linux/mips", status=1)
    assert f"is for linux/{own}, not for linux/mips" in said
    assert f"hint: --platform linux/{own}" in said
    assert isomark("ls", "-q") == ""
    maker = Command(tmp_path / "other")
    layout = tmp_path / "for-mips"
    _write_layout(layout, [root_file_system("a")], architecture="mips")
    maker("import", str(layout), "mips:1")
    maker("push", "mips:1", f"{plain.host}/mips:1", "--insecure")
    assert "hint: --platform linux/mips" in isomark("pull", f"{plain.host}/mips:1", "--insecure", status=1)
    isomark("pull", f"{plain.host}/mips:1", "--insecure", "--platform", "linux/mips")
    assert isomark("ls", "-q") == f"{plain.host}/mips:1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="a build needs root")
def test_the_build_cache_is_forgotten_on_demand_and_images_stay(isomark: Command, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Containerfile").write_text("FROM scratch\nCOPY Containerfile /\n")
    isomark("build", "-t", "kept", str(context))
    isomark("build", "-t", "gone", "--label", "a=b", str(context))
    isomark("rm", "gone")
    before = isomark.blobs()
    assert isomark("prune") == "removed 0 blobs: 0 B\n"
    assert isomark("prune", "--build-cache").startswith("forgot 1 build steps: ")
    assert isomark.blobs() == before, "an image needs them"
    isomark("rm", "kept")
    assert isomark.blobs() == []


def test_on_a_terminal_there_are_bars_and_in_a_pipe_lines(isomark: Command, proxy: Proxy, image: str) -> None:
    proxy.bytes_per_second = 8 * 2**20
    process = isomark.start("pull", f"{proxy.host}/{image}", "--insecure")
    _, piped = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = piped.decode().splitlines()
    assert sum(bool(re.fullmatch(r"sha256:[0-9a-f]{12}: pulled, 2\.00 MiB", line)) for line in lines) == 4
    isomark("rm", f"{proxy.host}/{image}")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        isomark.arguments("image", "pull", f"{proxy.host}/{image}", "--insecure"), cwd=ROOT,
        env={**isomark.environment, "TERM": "xterm"}, stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    drawn = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # EIO: the other end is closed
            break
        if not piece:
            break
        drawn += piece
    os.close(leader)
    assert process.wait(60) == 0
    assert "━" in drawn.decode()
    assert "layer sha256:" in drawn.decode()


def test_many_who_pull_the_same_at_once_share_one_download(isomark: Command, proxy: Proxy, image: str) -> None:
    proxy.bytes_per_second = 4 * 2**20
    pulls = [isomark.start("pull", f"{proxy.host}/{image}", "--insecure") for _ in range(4)]
    for process in pulls:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    asked = [path for method, path, _ in proxy.seen if method == "GET" and "/blobs/" in path]
    assert len(asked) == len(set(asked)) == 5
    isomark.assert_all_blobs_right()
    assert len(list((isomark.state / "trees").glob("*.json"))) == 1


def test_pulls_beside_removals_and_prunes_lose_nothing(isomark: Command, proxy: Proxy, image: str) -> None:
    proxy.bytes_per_second = 8 * 2**20
    name = f"{proxy.host}/{image}"
    for _ in range(3):
        pulls = [isomark.start("pull", name, "--insecure") for _ in range(2)]
        others = []
        while any(process.poll() is None for process in pulls):
            others += [isomark.start("prune"), isomark.start("rm", name)]
            others[-2].communicate(timeout=60)
            others[-1].communicate(timeout=60)
        for process in pulls:
            _, said = process.communicate(timeout=60)
            # removed again between its end and its own last look, at worst; never a half image
            assert process.returncode == 0 or b"no image" in said, said.decode()
        assert all(process.returncode == 0 for process in others[::2])
        isomark.assert_all_blobs_right()
    isomark("pull", name, "--insecure")
    assert isomark("prune", "--verify").startswith("removed 0 blobs")


def test_killed_at_any_moment_a_pull_goes_on_the_next_time_and_nothing_is_left(
    isomark: Command, proxy: Proxy, image: str
) -> None:
    isomark("import", "-", "kept", given=root_file_system("kept"))
    kept = json.loads(isomark("inspect", "kept"))[0]
    proxy.bytes_per_second = 6 * 2**20
    name = f"{proxy.host}/{image}"
    chance = random.Random(7)
    for _ in range(KILLS):
        process = isomark.start("pull", name, "--insecure")
        time.sleep(chance.uniform(0.2, 2.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        isomark.assert_all_blobs_right()
    cut_off = sum(path.stat().st_size for path in (isomark.state / "images/partial").iterdir())
    proxy.served.clear()
    isomark("pull", name, "--insecure")
    layers = json.loads(isomark("inspect", name))[0]["layers"]
    if cut_off:
        assert sum(proxy.served.values()) < sum(layer["size"] for layer in layers)
    assert json.loads(isomark("inspect", "kept"))[0]["layers"] == kept["layers"]
    isomark("prune", "--verify")
    isomark.assert_all_blobs_right()
    assert sorted(path.name for path in isomark.state.glob("trees/.*")) == []
    assert list((isomark.state / "owned").iterdir()) == []
    for part in ("ingest", "partial", "leases"):
        assert list((isomark.state / "images" / part).iterdir()) == []


def test_an_interrupt_ends_a_pull_that_waits(isomark: Command, proxy: Proxy, image: str) -> None:
    proxy.fault = lambda method, path, times: "slow" if "/blobs/" in path else None
    proxy.bytes_per_second = 1000.0
    process = isomark.start("pull", f"{proxy.host}/{image}", "--insecure")
    deadline = time.monotonic() + 30
    while not any("/blobs/" in path for _, path, _ in proxy.seen) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "interrupted" in said.decode()
    assert "Traceback" not in said.decode()
    assert list((isomark.state / "owned").iterdir()) == []


def limited(isomark: Command, script: str, *arguments: str) -> str:
    """Run a command that cannot but fail, after ``script`` in a mount namespace of its own; return what it says."""
    shell = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{script}; exec "$@"', "sh"]
    command = [*shell, *isomark.arguments("image", *arguments)]
    ended = subprocess.run(command, cwd=ROOT, env=isomark.environment, capture_output=True, check=False)
    said = ended.stderr.decode()
    assert ended.returncode == 1, said
    assert "Traceback" not in said
    return said


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root")
def test_on_a_full_disk_a_pull_fails_with_a_reason_and_leaves_the_space_free(
    isomark: Command, proxy: Proxy, image: str
) -> None:
    isomark.state.mkdir()
    seen = isomark.state.parent / "seen"
    small = f"mount -t tmpfs -o size=3m tmpfs {isomark.state}; trap 'find {isomark.state} -type f > {seen}' EXIT"
    # the trap needs the shell to stay: no exec
    script = f'{small}; "$@"; exit'
    said = limited(isomark, script, "pull", f"{proxy.host}/{image}", "--insecure")
    assert "No space left on device" in said
    assert "free some disk space" in said
    left = {Path(line).relative_to(isomark.state).parts[1] for line in seen.read_text().split()}
    assert left <= {"index.json", "oci-layout", "gc.lock", "blobs"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_store_that_cannot_be_written_is_not_called_damaged(isomark: Command) -> None:
    isomark("import", "-", "kept", given=root_file_system("kept"))
    readonly = f"mount --bind {isomark.state} {isomark.state}; mount -o remount,bind,ro {isomark.state}"
    said = limited(isomark, readonly, "ls")
    assert "Read-only file system" in said
    assert "set ISOMARK_STATE" in said
    assert "damaged" not in said
    assert isomark("ls", "-q") == "kept:latest\n"


SHORT_OF_DESCRIPTORS = """\
import resource, sys
from bench.cli.app import main
resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
main()
"""
"""The command behind the first look at the limit, which refuses so few."""


def test_without_descriptors_a_pull_fails_with_a_reason(isomark: Command, proxy: Proxy, image: str) -> None:
    isomark("ls")
    pulling = ["pull", f"{proxy.host}/{image}", "--insecure"]
    assert "ulimit -n" in limited(isomark, "ulimit -n 12", *pulling)
    ended = subprocess.run(
        [sys.executable, "-c", SHORT_OF_DESCRIPTORS, "image", *pulling], cwd=ROOT, env=isomark.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "Too many open files" in ended.stderr
    assert "ulimit -n" in ended.stderr
    assert "Traceback" not in ended.stderr
    isomark(*pulling)
    isomark.assert_all_blobs_right()


def test_help_of_every_command_answers(isomark: Command) -> None:
    names = re.findall(r"^  (\w+) ", isomark("--help").partition("Commands:")[2], re.MULTILINE)
    assert set(names) >= {"pull", "push", "ls", "inspect", "rm", "import", "export", "build", "history", "tag", "prune"}
    for name in names:
        assert "Usage:" in isomark(name, "--help")
