"""The engine is killed with SIGKILL at random points; ``isomark clean`` leaves nothing, and nothing stored is lost.

Everything happens in a network namespace of its own, so that interfaces, rules and ports can be counted exactly.
Each round's seed is printed; ``ISOMARK_ENGINE_KILLS`` is the number of rounds for each command.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import registries
from engine_rig import Engine, needs_root, open_engine
from netspaces import host_namespace, shell

from bench.clean import clean
from bench.journal import Journal, read_journals
from runtimes.oci.collect import sweep_dead
from runtimes.oci.images import Images

ROUNDS = int(os.environ.get("ISOMARK_ENGINE_KILLS", "8"))
SEED = int(os.environ.get("ISOMARK_ENGINE_SEED", "0")) or time.time_ns() % 10**9
PATIENCE_SECONDS = 0.3
"""How long what survived the kill may go on by itself, before it is killed as well."""
HANG_SECONDS = 30.0
KEPT = "keeper"
RUNNER = "runner"

pytestmark = [needs_root, pytest.mark.timeout(120 + 10 * ROUNDS)]


@dataclass
class Site:
    """An engine with a registry, and containers that no kill of another command may touch."""

    engine: Engine
    registry: str
    directory: Path
    blobs: set[str] = field(default_factory=set)

    @property
    def images(self) -> Images:
        return Images(self.engine.state)

    def processes(self) -> set[int]:
        """Of the engine and of its containers, which are given the same mark."""
        return set(self.engine.processes())

    def left(self) -> set[str]:
        """Everything that a kill could leave behind, by name."""
        state = self.engine.state
        patterns = (
            "containers/*",
            "containers/.*",
            "containers/names/*",
            "volumes/*",
            "volumes/.*",
            "trees/.*",
            "images/ingest/*",
            "images/leases/*",
            "build/making-*",
            "**/*.new",
            "scratch/*",
        )
        found = {str(path.relative_to(state)) for pattern in patterns for path in state.glob(pattern)}
        found |= {f"journal {left.path.name}" for left in read_journals(state / "owned") if not left.owner.is_alive()}
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found |= {f"mount {line.split()[4]}" for line in mounts if str(state) in line}
        found |= {line.split(": ")[1] for line in shell("ip -o link").splitlines()}
        return found | {f"rule {line.strip()}" for line in shell("nft list ruleset").splitlines()}

    def verify_blobs(self) -> None:
        """Every blob is what its name says, and none is lost that was there."""
        there = set()
        for path in (self.engine.state / "images/blobs/sha256").iterdir():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
            there.add(path.name)
        assert self.blobs <= there

    def verify_kept(self) -> None:
        """What was there before a kill still is, whole."""
        self.verify_blobs()
        for name in ("busy:latest", "wishes:latest"):
            self.images.find(name)
        assert self.engine.done("logs", KEPT) == "kept words"
        assert self.engine.inspect(KEPT)["State"]["ExitCode"] == 3
        assert self.engine.out("busy", "echo", "still runs") == "still runs"

    def owned(self) -> set[str]:
        """The names of containers and cgroups that journals tell of."""
        journals = read_journals(self.engine.state / "owned")
        return {text for left in journals for entry in left.entries for text in entry.what.values()}

    def clean(self) -> None:
        """What ``isomark clean`` does, without its start, which takes longer."""
        faults = [removal for removal in clean(self.engine.state / "owned") if removal.fault]
        assert not faults
        sweep_dead(self.engine.state)

    def settle(self, standing: set[int]) -> None:
        """Let what survived end, or kill it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := self.processes() - standing:
            if time.monotonic() > deadline:
                for pid in left:
                    kill(pid)
            time.sleep(0.01)
            assert time.monotonic() < deadline + HANG_SECONDS, f"{left} do not die"


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def groups(names: set[str]) -> list[Path]:
    """The cgroups of these names."""
    return [path for path in Path("/sys/fs/cgroup").glob("*/isomark/*") if path.name in names]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("kills")
    with host_namespace(), registries.registry(directory / "registry") as server, open_engine(directory) as engine:
        made = Site(engine, server.host, directory)
        engine("run", "--name", KEPT, "--network", "none", "busy", "sh", "-c", "echo kept words; exit 3")
        publish(made)
        (directory / "context").mkdir()
        (directory / "context" / "file").write_bytes(os.urandom(500_000))
        (directory / "context" / "Containerfile").write_text(
            f"FROM busy\nARG ROUND\nENV ISOMARK_STATE={engine.state}\nCOPY file /file\n"
            "RUN echo $ROUND >/round; dd if=/dev/zero of=/zeros bs=1M count=4 2>/dev/null\n"
            "RUN cat /file >/copy; sleep 0.1\n"
        )
        made.blobs = {path.name for path in (engine.state / "images/blobs/sha256").iterdir()}
        yield made


def publish(site: Site) -> None:
    """Build an image of some layers, and push it."""
    name = f"{site.registry}/big:1"
    context = site.directory / "big"
    context.mkdir()
    lines = ["FROM busy"]
    for number in range(4):
        (context / f"part{number}").write_bytes(os.urandom(1_500_000))
        lines.append(f"COPY part{number} /")
    (context / "Containerfile").write_text("\n".join(lines) + "\n")
    site.engine.done("build", "-t", name, str(context), group="image")
    site.engine.done("push", "--insecure", name, group="image")
    site.engine.done("rm", name, group="image")


@dataclass
class Round:
    """One kill: the command, what is undone before it, and what must hold after it."""

    site: Site
    command: Callable[[int], list[str]]
    prepare: Callable[[int], None] = lambda number: None
    check: Callable[[int], None] = lambda number: None
    standing: Callable[[], set[int]] = set
    spare: Callable[[], set[int]] = set


def measure(case: Round) -> float:
    """Seconds that the undisturbed command takes: the median of three."""
    taken = []
    for number in (-1, -2, -3):
        case.prepare(number)
        begun = time.monotonic()
        ended = subprocess.run(
            case.command(number),
            capture_output=True,
            env=case.site.engine.environment,
            check=False,
            timeout=HANG_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        taken.append(time.monotonic() - begun)
        assert ended.returncode == 0, ended.stderr
        case.site.settle(case.standing())
        case.check(number)
    return statistics.median(taken)


def storm(case: Round, name: str) -> None:
    """Kill the command again and again, and look each time at what is left."""
    length = measure(case)
    for number in range(ROUNDS):
        seed = SEED + number
        dice = random.Random(seed)
        victim, delay = dice.choice(("command", "command", "other", "all")), dice.uniform(0.1, 1.05) * length
        story = f"{name} {number}: seed {seed}, {victim} killed after {delay:.4f} s"
        print(story)
        with told(story):
            before = case.site.left()
            case.prepare(number)
            standing = case.standing()
            strike(case, number, victim, delay, dice, standing)
            owned = case.site.owned()
            case.site.settle(case.standing())
            case.site.clean()
            assert groups(owned - case.site.owned()) == []
            case.check(number)
            assert case.site.left() == before
            assert case.site.processes() <= case.standing()
            case.site.verify_blobs()
    assert "0 removed, 0 not" in case.site.engine.done(group="clean")
    case.site.verify_kept()


@contextmanager
def told(story: str) -> Iterator[None]:
    """Let a failure say which round it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(story)
        raise


def strike(case: Round, number: int, victim: str, delay: float, dice: random.Random, standing: set[int]) -> None:
    """Start the command and kill it, one of the processes that it started, or all of them."""
    struck = case.site.engine
    with subprocess.Popen(
        case.command(number),
        env=struck.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        time.sleep(delay)
        others = sorted(case.site.processes() - standing - {running.pid} | case.spare())
        if victim == "all":
            for pid in others:
                kill(pid)
        if victim == "other" and others:
            kill(dice.choice(others))
        else:
            running.kill()
        errors = communicate(running)
    assert "Traceback" not in errors, errors


def communicate(running: subprocess.Popen[str]) -> str:
    try:
        return running.communicate(timeout=HANG_SECONDS)[1]
    except subprocess.TimeoutExpired:
        running.kill()
        raise


def mark(site: Site) -> tuple[str, ...]:
    """For containers: found again among the host's processes by this."""
    return ("-e", f"ISOMARK_STATE={site.engine.state}")


def test_pull(site: Site) -> None:
    name = f"{site.registry}/big:1"

    def prepare(_number: int) -> None:
        images = site.images
        if name in images.layout.references():
            images.remove(name)
        with Journal(site.engine.state / "owned") as journal:
            images.collect(journal, partial=True)

    def check(number: int) -> None:
        if number % 4 == 3:  # it goes on where it was cut off
            site.engine.done("pull", "--insecure", "--quiet", name, group="image")
            assert site.engine.out(name, "stat", "-c", "%s", "/part3") == "1500000"

    site.blobs = {path.name for path in (site.engine.state / "images/blobs/sha256").iterdir()}
    prepare(0)
    site.blobs = {path.name for path in (site.engine.state / "images/blobs/sha256").iterdir()}
    command = site.engine.command("pull", "--insecure", "--quiet", name, group="image")
    storm(Round(site, lambda _number: command, prepare, check), "pull")


def test_build(site: Site) -> None:
    def command(number: int) -> list[str]:
        return site.engine.command(
            "build",
            "--network",
            "none",
            "--build-arg",
            f"ROUND={SEED}-{number}",
            "-t",
            "built",
            str(site.directory / "context"),
            group="image",
        )

    def check(number: int) -> None:
        if number % 4 == 3:
            ended = subprocess.run(command(number), capture_output=True, check=False, env=site.engine.environment)
            assert ended.returncode == 0, ended.stderr
            assert site.engine.out("built", "cat", "/round") == f"{SEED}-{number}"

    storm(Round(site, command, check=check), "build")


def whole_or_gone(site: Site, name: str) -> None:
    """The container ``name`` can be looked at and removed, or there is none."""
    if name in site.engine.done("ps", "-a", "--format", "{{.Names}}").split():
        assert site.engine.status(name) in ("created", "exited")
        site.engine.done("logs", name)
        site.engine.done("rm", "-v", name)


def test_create(site: Site) -> None:
    def command(number: int) -> list[str]:
        return site.engine.command("create", "--name", f"made{number}", "-v", "/data", "wishes")

    storm(Round(site, command, check=lambda number: whole_or_gone(site, f"made{number}")), "create")


def network(number: int) -> tuple[str, ...]:
    return ("-p", "80", "--network", "bridge") if number % 2 else ("--network", "none")


@pytest.mark.parametrize("option", ["-d", "--rm"])
def test_start(site: Site, option: str) -> None:
    def command(number: int) -> list[str]:
        return site.engine.command(
            "run",
            option,
            "--name",
            f"run{number}",
            *mark(site),
            *network(number),
            "-v",
            "/data",
            "busy",
            "sh",
            "-c",
            "echo begun; sleep 0.1; echo done",
        )

    def check(number: int) -> None:
        whole_or_gone(site, f"run{number}")
        site.clean()  # the idle bridge, if it was rm that ended the container

    storm(Round(site, command, check=check), f"run {option}")


def test_exec(site: Site) -> None:
    def monitor() -> set[int]:
        found = site.engine.inspect(RUNNER)
        return {site.engine.monitor(found["Id"])} if found["State"]["Running"] else set()

    def standing() -> set[int]:
        return {*monitor(), site.engine.inspect(RUNNER)["State"]["Pid"]}

    def prepare(_number: int) -> None:
        if not monitor():
            assert site.engine.inspect(RUNNER)["State"]["ExitCode"] == 137
            site.engine.done("start", RUNNER)

    def command(_number: int) -> list[str]:
        return site.engine.command("exec", "-i", *mark(site), RUNNER, "sh", "-c", "echo inside; sleep 0.1")

    def check(number: int) -> None:
        prepare(number)
        assert site.engine.done("exec", RUNNER, "echo", "again") == "again"

    site.engine.start("--name", RUNNER, *mark(site), "busy", "sleep", "1000")
    try:
        storm(Round(site, command, prepare, check, standing, monitor), "exec")
    finally:
        site.engine.done("rm", "-f", RUNNER)


def test_rm(site: Site) -> None:
    def prepare(number: int) -> None:
        runs = ("sleep", "1000") if number % 2 else ("true",)
        site.engine.done(
            "run", "-d", "--name", f"doomed{number}", *mark(site), "--network", "none", "-v", "/data", "busy", *runs
        )

    def command(number: int) -> list[str]:
        return site.engine.command("rm", "-f", "-v", f"doomed{number}")

    storm(Round(site, command, prepare, lambda number: whole_or_gone(site, f"doomed{number}")), "rm")
