"""The disk is full, or no more files may be opened: a command says so in one line and leaves nothing behind.

The state directory is a small tmpfs in a mount namespace of its own, of which another file takes all but so much.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import registries
from engine_rig import WISHES, Engine, add_image, cgroups_of, needs_root, open_engine, require_cgroups, until
from netspaces import host_namespace, shell

from bench.clean import clean

pytestmark = needs_root

DISK_BYTES = 24 << 20
ROOM_BYTES = (0, 4096, 8192, 12288, 16384, 20480, 28672, 36864, 65536, 131072, 524288, 1 << 20, 2 << 20, 4 << 20)
PAGE = 4096


class SmallDisk(Engine):
    """An engine whose state directory is a tmpfs in another mount namespace, where its commands run."""

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        script = f"mount -t tmpfs -o size={DISK_BYTES} tmpfs {state} && echo ready && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.inside = Path(f"/proc/{self._holder.pid}/root{state}")

    def command(self, *arguments: str, group: str = "container") -> list[str]:
        entering = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]
        return [*entering, *super().command(*arguments, group=group)]

    def leave_room(self, size: int) -> None:
        """Take all but ``size`` bytes."""
        filler = self.inside / "filler"
        filler.unlink(missing_ok=True)
        disk = os.statvfs(self.inside)
        with filler.open("wb") as file:
            wanted = disk.f_bavail * disk.f_frsize - size
            if wanted > 0:
                os.posix_fallocate(file.fileno(), 0, wanted)

    def make_room(self) -> None:
        (self.inside / "filler").unlink(missing_ok=True)

    def left(self) -> set[str]:
        """What a failed command could leave."""
        patterns = (
            "owned/*",
            "containers/*",
            "containers/.*",
            "containers/names/*",
            "volumes/*",
            "volumes/.*",
            "trees/.*",
            "images/ingest/*",
            "images/leases/*",
            "images/partial/*",
            "build/making-*",
            "**/*.new",
        )
        return {str(path.relative_to(self.inside)) for pattern in patterns for path in self.inside.glob(pattern)}

    def close(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait()


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    require_cgroups()
    state = tmp_path_factory.mktemp("small") / "state"
    state.mkdir()
    engine = SmallDisk(state)
    try:
        add_image(engine.inside, "busy:latest", {"Env": ["PATH=/bin"], "Cmd": ["sh"]})
        add_image(engine.inside, "wishes:latest", WISHES)
        engine.done("create", "busy")  # makes the directories
        engine.clear()
        yield engine
        engine.make_room()
        engine.clear()
        until(lambda: not engine.processes(), "no process of the engine is left")
        assert not any(name.startswith(("owned", "volumes")) for name in engine.left()), engine.left()
    finally:
        engine.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registries.registry(tmp_path_factory.mktemp("registry")) as server:
        yield server.host


def is_told(ended: subprocess.CompletedProcess[str]) -> bool:
    """Whether it failed, and then said why in one line, which a hint may follow."""
    if ended.returncode == 0:
        return False
    lines = [line for line in ended.stderr.splitlines() if not line.startswith(("#", "Step", "isomark: pulling"))]
    assert lines, f"{ended.returncode}, and it says nothing"
    assert lines[0].startswith("isomark: "), ended.stderr
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: ")), ended.stderr
    return True


def whole(engine: Engine) -> set[str]:
    """What is of containers that are whole: as Docker's, one that was made and cannot be started stays."""
    rows = engine.done("ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}}").split()
    return {f"containers/{ident}" for ident in rows[::2]} | {f"containers/names/{name}" for name in rows[1::2]}


def fill_up(disk: SmallDisk, attempt: Callable[[], subprocess.CompletedProcess[str]], undo: Callable[[], Any]) -> None:
    """Try with more and more room until it works twice; nothing is left where it does not."""
    outcomes = []
    for room in ROOM_BYTES:
        before = disk.left()
        disk.leave_room(room)
        try:
            ended = attempt()
        finally:
            disk.make_room()
        failed = is_told(ended)
        until(lambda: not disk.processes(), "all has ended")
        assert [cgroups_of(ident) for ident in disk.ids() if cgroups_of(ident)] == []
        if failed:
            assert disk.left() - whole(disk) == before - whole(disk), (room, ended.stderr)
        undo()
        outcomes.append(not failed)
        if outcomes[-2:] == [True, True]:
            break
    assert outcomes[0] is False, "the disk was not full"
    assert outcomes[-1] is True, ended.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("create",),
        ("run", "--rm"),
        ("run",),
        ("run", "-d"),
        ("run", "--rm", "-v", "/data"),
        ("create", "--name", "x", "-v", "named:/data"),
        ("run", "--rm", "-v", "named:/bin"),
    ],
)
def test_a_full_disk_refuses_a_container(disk: SmallDisk, command: tuple[str, ...]) -> None:
    fill_up(disk, lambda: disk(*command, "--network", "none", "busy", "true"), disk.clear)


def test_a_full_disk_refuses_a_start(disk: SmallDisk) -> None:
    disk.done("create", "--name", "later", "--network", "none", "busy", "true")
    fill_up(disk, lambda: disk("start", "later"), lambda: None)
    assert disk.inspect("later")["State"]["ExitCode"] == 0
    disk.clear()


def test_a_full_disk_refuses_a_volume(disk: SmallDisk) -> None:
    fill_up(disk, lambda: disk("create", "v", group="volume"), disk.clear)


def test_a_full_disk_refuses_a_build(disk: SmallDisk, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(600_000))
    (tmp_path / "Containerfile").write_text("FROM busy\nCOPY file /\nRUN echo x >/y; cat /file >/copy\n")

    def undo() -> None:
        disk("rm", "built", group="image")

    def attempt() -> subprocess.CompletedProcess[str]:
        return disk("build", "-q", "--no-cache", "--network", "none", "-t", "built", str(tmp_path), group="image")

    fill_up(disk, attempt, undo)


def test_a_full_disk_refuses_a_pull(disk: SmallDisk, registry: str, tmp_path: Path) -> None:
    name = f"{registry}/small:1"
    (tmp_path / "file").write_bytes(os.urandom(900_000))
    (tmp_path / "Containerfile").write_text("FROM busy\nCOPY file /\n")
    disk.done("build", "-q", "-t", name, str(tmp_path), group="image")
    disk.done("push", "--insecure", "-q", name, group="image")

    def forget() -> None:
        disk("rm", name, group="image")

    forget()
    fill_up(disk, lambda: disk("pull", "--insecure", "-q", name, group="image"), forget)


def test_a_container_outlives_its_log(disk: SmallDisk) -> None:
    ident = disk.start(
        "--name", "talks", "busy", "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; seq 100000; exit 4"
    )
    disk.leave_room(6 * PAGE)
    disk.done("exec", "talks", "touch", "/go")
    assert disk.done("wait", "talks") == "4"
    until(lambda: not disk.processes(), "all has ended")
    state = disk.inspect("talks")["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 4)
    assert state["Error"].startswith("the log is incomplete: No space left")
    assert disk.done("logs", "talks").splitlines()[:3] == ["1", "2", "3"]
    disk.make_room()
    disk.clear()
    assert cgroups_of(ident) == []


def test_how_it_ended_is_noted_on_a_disk_that_is_quite_full(disk: SmallDisk) -> None:
    disk.start("--name", "last", "busy", "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; exit 5")
    disk.leave_room(0)
    disk.done("exec", "last", "touch", "/go")
    assert disk.done("wait", "last") == "5"
    state = disk.inspect("last")["State"]
    assert (state["Status"], state["ExitCode"], state["Error"]) == ("exited", 5, "")
    disk.make_room()
    assert disk("start", "-a", "last").returncode == 5
    disk.clear()


@pytest.mark.parametrize("command", [("stop", "-t", "0"), ("kill",), ("rm", "-f"), ("pause",), ("exec",)])
def test_a_full_disk_keeps_nobody_from_ending_a_container(disk: SmallDisk, command: tuple[str, ...]) -> None:
    ident = disk.start("busy", "sleep", "1000")
    disk.leave_room(0)
    ended = disk(*command, ident, *(("true",) if command == ("exec",) else ()))
    is_told(ended)
    if command[0] not in ("pause", "rm"):
        assert ended.returncode == 0, ended.stderr
    disk("rm", "-f", ident)
    if ident in disk.ids():  # removing takes a journal
        disk.make_room()
        disk.done("rm", "-f", ident)
    disk.make_room()
    until(lambda: not disk.processes(), "all has ended")
    assert cgroups_of(ident) == []
    assert [name for name in disk.left() if name.startswith(("owned", "containers/."))] == []


# descriptors


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(tmp_path_factory.mktemp("shortage")) as opened:
        yield opened


class Unchecked(Engine):
    """The engine without the look at the limit that comes before each command."""

    def command(self, *arguments: str, group: str = "container") -> list[str]:
        program = "import sys; from runtimes.engine.cli import main; sys.exit(main(sys.argv[2:], sys.argv[1]))"
        return [super().command()[0], "-c", program, group, *arguments]


def limited(engine: Engine, limit: int, *arguments: str, group: str = "container") -> subprocess.CompletedProcess[str]:
    command = ["prlimit", f"--nofile={limit}:{limit}", "--", *engine.command(*arguments, group=group)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=engine.environment,
        stdin=subprocess.DEVNULL,
        close_fds=True,
    )


COMMANDS: tuple[tuple[str, ...], ...] = (
    ("run", "--rm", "--network", "none", "busy", "true"),
    ("run", "-d", "--network", "none", "busy", "true"),
    ("create", "-v", "/data", "busy"),
    ("ps", "-a"),
)


@pytest.mark.parametrize("limit", [5, 8, 16, 32, 62])
def test_too_few_descriptors_are_told_before_anything_begins(engine: Engine, limit: int) -> None:
    for arguments in COMMANDS:
        ended = limited(engine, limit, *arguments)
        assert is_told(ended)
        assert "ulimit -n" in ended.stderr
    for words in ("pull localhost:1/x", "build /", "ls"):
        ended = limited(engine, limit, *words.split(), group="image")
        assert is_told(ended)
        assert "ulimit -n" in ended.stderr
    assert engine.leftovers() == []


def test_as_many_descriptors_as_are_asked_for_are_enough(engine: Engine) -> None:
    for arguments in COMMANDS:
        ended = limited(engine, 64, *arguments)
        assert ended.returncode == 0, ended.stderr
    engine.clear()


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments[:2]))
def test_running_out_of_descriptors_half_way_is_told(engine: Engine, arguments: tuple[str, ...]) -> None:
    unchecked = Unchecked(engine.state)
    outcomes = []
    for limit in (*range(5, 20), *range(20, 64, 4)):
        ended = limited(unchecked, limit, *arguments)
        failed = is_told(ended) if "Fatal Python error" not in ended.stderr else True
        until(lambda: not engine.processes(), "all has ended")
        if failed:
            clean(engine.state / "owned")
        assert [cgroups_of(ident) for ident in engine.ids() if cgroups_of(ident)] == []
        engine.clear()
        assert engine.leftovers() == [], (limit, ended.stderr)
        outcomes.append(not failed)
        if outcomes[-3:] == [True] * 3:
            break
    assert outcomes[-1]


def test_more_ports_than_descriptors_are_refused(engine: Engine) -> None:
    with host_namespace():
        ended = limited(engine, 80, "run", "--rm", "-p", "40000-40090:40000-40090", "busy", "true")
        assert is_told(ended)
        until(lambda: not engine.processes(), "its monitor has removed the bridge")
        assert "isomark" not in shell("ip link; nft list ruleset")
    assert engine.leftovers() == []
