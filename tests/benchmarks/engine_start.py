"""The built-in engine beside crun, runc and Docker, in one run on one machine; printed as ratios, never asserted.

    python tests/benchmarks/engine_start.py [--starts 200] [--held 1000] [--state DIRECTORY] [--without docker]

Every engine starts the same tiny static program from the same root file system on an overlay, with namespaces for
mounts, processes, network (loopback only), IPC, host name and cgroups, with the same limits and Docker's default
security; crun and runc once more as their own ``spec`` proposes, without a filter and limits. Ours is measured in
process, as a monitor starts containers, and as a driver, which is too large to fork and asks a helper.
Measured is from the
request to the program's first act, which tells CLOCK_MONOTONIC, and for programs the wall time until they have ended;
the order is random in every round. Programs are started by posix_spawn from a small process; the overlay is mounted
for crun, runc and isomark-oci beforehand, once, which they are not charged for; ours is mounted in every start. On
a host of both cgroup versions crun runs where version 2 is not mounted, because it refuses else.

Then CPU work inside against outside, and many containers held at once. Needs root and gcc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from peers import Docker, Launcher, available, cgroup2_mounts, oci_config, own_config, runc_like

from bench.driver import Lab, Launch
from bench.journal import Journal
from bench.model import Image, Limits, WorkloadImage
from runtimes.container.driver import ContainerDriver
from runtimes.driver import MOUNT_POINTS, SandboxDriver
from runtimes.instance import ProcessInstance
from runtimes.native import NativeDriver
from runtimes.security import levels

HERE = Path(__file__).resolve().parent
LEVELS = ("off", "default", "strict")
OURS = "isomark, in process"
COMMAND = "isomark container run"
TARGETS = {"crun run": 0.5, "runc run": 0.3, "docker run": 0.03}
WALL_TARGETS = {"runc run": 1.5}
LIMITS = ("--network", "none", "--memory", "512m", "--cpus", "1", "--pids-limit", "512")
WORK = 150_000_000


class Taken(NamedTuple):
    """Milliseconds from the request to the program's first act, and to the end of the command that started it."""

    act: float
    wall: float | None


class InProcess:
    """The engine in a small process of its own, which starts containers itself: what a monitor does."""

    def __init__(self, state: Path, tree: Path) -> None:
        program = [sys.executable, "-I", "-S", str(HERE / "in_process.py"), str(HERE.parents[1]), str(state), str(tree)]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self) -> Taken:
        """One start."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        begun, act = self._process.stdout.readline().split()
        return Taken((float(act) - float(begun)) * 1e3, None)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def make_tree(root: Path) -> Path:
    """The program and what is mounted on."""
    for name in ("bin", "etc", *MOUNT_POINTS):
        (root / name).mkdir(parents=True)
    subprocess.run(["gcc", "-O2", "-static", "-o", str(root / "bin/probe"), str(HERE / "probe.c")], check=True)
    return root


class Ours:
    """The driver, in this process."""

    def __init__(self, driver: SandboxDriver, tree: Path) -> None:
        self.driver = driver
        self.image: Image = driver.build(WorkloadImage("bench", "sha256:0", tree, tree, 0, 0, 0))
        self._number = 0

    def begin(self, *command: str, limits: Limits | None = None) -> ProcessInstance:
        """Start one and return it."""
        self._number += 1
        launch = Launch(f"b-{self._number}", ("/bin/probe", *command), {"PATH": "/bin"}, limits or Limits(), None)
        return self.driver.start(self.image, launch)

    def start(self) -> Taken:
        """One start."""
        begun = time.monotonic()
        with self.begin() as instance:
            (line,) = instance.lines(30)
        return Taken((float(line.text) - begun) * 1e3, None)

    def work(self) -> float:
        """Seconds that CPU work takes inside."""
        with self.begin("work", str(WORK), limits=Limits(cpus=os.cpu_count() or 1)) as instance:
            (line,) = instance.lines(120)
        return float(line.text)


def programs(stack: ExitStack, state: Path, tree: Path, without: list[str]) -> dict[str, Callable[[], Taken]]:
    """Name -> one start, of the commands that can run here, ours first; tells why others cannot."""
    mount_overlay(stack, state, tree)
    found = {COMMAND: own_command(stack, state, tree), **runtimes(stack, state, without)}
    stack.callback(remove_groups)
    if "docker" not in without:
        try:
            docker = stack.enter_context(Docker(state / "docker"))
            docker.import_tree(tree)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            print(f"docker: {error}")
            return found
        launcher = stack.enter_context(Launcher())
        for name, options in (("docker run", LIMITS[2:]), ("docker run, loopback only", LIMITS)):
            command = [*docker.command, "run", "--rm", *options, "bench", "/bin/probe"]
            found[name] = taking(launcher, lambda command=command: command)
    return found


def own_command(stack: ExitStack, state: Path, tree: Path) -> Callable[[], Taken]:
    """``isomark container run`` of the same tree as an image."""
    isomark = str(Path(sys.executable).with_name("isomark"))
    os.environ["ISOMARK_STATE"] = str(state)
    with subprocess.Popen(["tar", "-C", str(tree), "-c", "."], stdout=subprocess.PIPE) as packed:
        subprocess.run([isomark, "image", "import", "-", "bench"], stdin=packed.stdout, capture_output=True, check=True)
    command = [isomark, "container", "run", "--rm", *LIMITS, "bench", "/bin/probe"]
    return taking(stack.enter_context(Launcher()), lambda: command)


def runtimes(stack: ExitStack, state: Path, without: list[str]) -> dict[str, Callable[[], Taken]]:
    """OCI runtimes, each with a bundle as Docker would make it and with one of its own."""
    found: dict[str, Callable[[], Taken]] = {}
    security = levels.level("default", state=str(state))
    numbers = iter(range(1_000_000))
    own = str(Path(sys.executable).with_name("isomark-oci"))
    for engine, path in {**available(["crun", "runc"]), "isomark-oci": own}.items():
        if path is None or engine in without:
            print(f"{engine}: not installed or not wanted")
            continue
        launcher = stack.enter_context(Launcher(*(cgroup2_mounts() if engine == "crun" else ())))
        cgroup = f"/isomark-bench-{os.getpid()}/{engine}"
        configs = {
            "": oci_config(state / "merged", ["/bin/probe"], security, cgroup),
            ", less strict": own_config(path, state / f"spec-{engine}", state / "merged", ["/bin/probe"], cgroup),
        }
        for what, config in configs.items():
            bundle = state / f"bundle-{engine}{len(what)}"
            bundle.mkdir()
            (bundle / "config.json").write_text(json.dumps(config))
            found[f"{engine} run{what}"] = taking(
                launcher, lambda path=path, bundle=bundle: runc_like(path, bundle, state / "run", next(numbers))
            )
    return found


def taking(launcher: Launcher, command: Callable[[], list[str]]) -> Callable[[], Taken]:
    """One start of a command."""

    def start() -> Taken:
        begun, ended, output = launcher.run(command())
        return Taken((float(output.split()[-1]) - begun) * 1e3, (ended - begun) * 1e3)

    return start


def mount_overlay(stack: ExitStack, state: Path, tree: Path) -> None:
    """The root file system of crun and runc."""
    for name in ("upper", "work", "merged", "run"):
        (state / name).mkdir()
    options = f"lowerdir={tree},upperdir={state}/upper,workdir={state}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(state / "merged")], check=True)
    stack.callback(subprocess.run, ["umount", "-l", str(state / "merged")], check=True)


def remove_groups() -> None:
    """The groups above those that crun and runc removed."""
    for group in Path("/sys/fs/cgroup").glob(f"*/isomark-bench-{os.getpid()}"):
        group.rmdir()
    alone = Path(f"/sys/fs/cgroup/isomark-bench-{os.getpid()}")
    if alone.is_dir():
        alone.rmdir()


def compare_starts(ways: dict[str, Callable[[], Taken]], starts: int, pause: float, slow_starts: int) -> None:
    """Print medians and ratios."""
    taken: dict[str, list[Taken]] = defaultdict(list)
    for number in range(starts + 3):
        for name in random.sample(sorted(ways), len(ways)):
            if name.startswith("docker run") and number >= slow_starts:
                continue
            time.sleep(pause)
            each = ways[name]()
            if number >= 3:
                taken[name].append(each)
    acts = {name: [each.act for each in taken[name]] for name in ways}
    print_table("request to first act", acts, OURS, TARGETS)
    walls = {name: [each.wall for each in taken[name] if each.wall is not None] for name in ways}
    print_table("command, wall time", {name: each for name, each in walls.items() if each}, COMMAND, WALL_TARGETS)


def print_table(title: str, taken: dict[str, list[float]], ours: str, targets: dict[str, float]) -> None:
    """Print one measure: every way beside ``ours``."""
    base = statistics.median(taken[ours])
    print(f"\n{title:32}{'starts':>8}{'median ms':>11}{'p10':>8}{'p90':>8}{'ours/it':>10}{'target':>8}")
    for name, values in taken.items():
        median, deciles = statistics.median(values), statistics.quantiles(values, n=10)
        target = f"{targets[name]:8.2f}" if name in targets else ""
        row = f"{name:32}{len(values):8}{median:11.2f}{deciles[0]:8.2f}{deciles[-1]:8.2f}{base / median:10.3f}"
        print(row + target)


def compare_work(ours: Ours, native: Ours, rounds: int) -> None:
    """Print how fast CPU work is inside."""
    ratios = []
    for number in range(rounds):
        order = (ours.work, native.work) if number % 2 else (native.work, ours.work)
        first, second = order[0](), order[1]()
        inside, outside = (first, second) if number % 2 else (second, first)
        ratios.append(outside / inside)
    share = statistics.median(ratios)
    print(f"\nCPU work inside, default security: {share:.2%} of native ({rounds} pairs; target 99 %)")


def hold_many(ours: Ours, count: int) -> None:
    """Print what many containers at once cost."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ours.driver.close()
    ours.start()
    helper = ours.driver._spawner.pid
    before = memory_kib(os.getpid()) + memory_kib(helper)
    held = ExitStack()
    begun = time.monotonic()
    for _ in range(count):
        held.enter_context(ours.begin("hold"))
    started = time.monotonic() - begun
    engine = memory_kib(os.getpid()) + memory_kib(helper) - before
    begun = time.monotonic()
    held.close()
    ended = time.monotonic() - begun
    print(
        f"\n{count} containers at once: started in {started:.2f} s (target {count / 125:.0f}), engine memory "
        f"{engine / count / 1024:.3f} MiB each (target 1), torn down in {ended:.2f} s (target {count / 125:.0f})"
    )


def memory_kib(pid: int) -> int:
    """Proportional set size."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError(pid)


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--docker-starts", type=int, default=30, help="fewer, because each takes a third of a second")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between starts")
    parser.add_argument("--work", type=int, default=11, help="pairs of CPU work")
    parser.add_argument("--held", type=int, default=1000)
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isomark-bench-", dir=arguments.state)))
        journal = stack.enter_context(Journal(state / "owned"))
        (state / "scratch").mkdir()
        lab = Lab(state, state / "scratch", journal, None)
        tree = make_tree(state / "tree")
        engines = {level: Ours(ContainerDriver(lab, security=level), tree) for level in LEVELS}
        native = Ours(NativeDriver(lab), tree)
        for each in (*engines.values(), native):
            stack.callback(each.driver.close)
        small = InProcess(state, tree)
        stack.callback(small.close)
        ways = {OURS: small.start}
        ways |= {f"isomark driver, {level} security": each.start for level, each in engines.items()}
        ways |= {"isomark driver, bare process": native.start, **programs(stack, state, tree, arguments.without)}
        compare_starts(ways, arguments.starts, arguments.pause, arguments.docker_starts + 3)
        if arguments.work:
            compare_work(engines["default"], native, arguments.work)
        if arguments.held:
            hold_many(engines["default"], arguments.held)


if __name__ == "__main__":
    main()
