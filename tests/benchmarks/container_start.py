"""How long the built-in drivers take from the request to the payload's first line; printed, never asserted.

    python tests/benchmarks/container_start.py [--starts 200] [--pause 0.05] [--state DIRECTORY]

Starts ``/bin/sh -c 'echo isomark ready'`` of a small busybox tree, in every round once by each way and in
random order: by posix_spawn(3) alone, by the driver ``native``, and by the driver ``container`` with and
without a network address. The pause matters: in quick succession the kernel's locks stay warm, which flatters.
Needs root and busybox-static.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.driver import Lab, Launch
from bench.journal import Journal
from bench.model import Limits, Step, WorkloadImage
from bench.network import LabNetwork
from runtimes.container.driver import ContainerDriver
from runtimes.driver import MOUNT_POINTS, SandboxDriver
from runtimes.native import NativeDriver

COMMAND = ("/bin/sh", "-c", "echo isomark ready")
READY = b"isomark ready\n"
ENVIRONMENT = {"PATH": "/bin"}


class Timings:
    """Milliseconds by way, and by step of the container's set-up."""

    def __init__(self) -> None:
        self.start: dict[str, list[float]] = defaultdict(list)
        self.teardown: dict[str, list[float]] = defaultdict(list)
        self.steps: dict[str, list[float]] = defaultdict(list)

    def add_steps(self, requested: float, steps: Sequence[Step], first_line: float) -> None:
        """Turn the instants at which steps began into lengths."""
        names = ["fork and namespaces", *(step.name for step in steps)]
        instants = [requested, *(step.at_seconds for step in steps), first_line]
        for name, begin, end in zip(names, instants, instants[1:], strict=False):
            self.steps[name].append((end - begin) * 1e3)


def make_tree(root: Path) -> Path:
    """A busybox with a shell."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("this needs busybox: apt-get install busybox-static")
    for name in ("bin", *MOUNT_POINTS):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    return root


def time_spawn(tree: Path, timings: Timings) -> None:
    """The same program with nothing around it."""
    begun = time.monotonic()
    read_fd, write_fd = os.pipe()
    pid = os.posix_spawn(
        tree / "bin/busybox", ["sh", *COMMAND[1:]], ENVIRONMENT,
        file_actions=[(os.POSIX_SPAWN_DUP2, write_fd, 1)],
    )  # fmt: skip
    os.close(write_fd)
    assert os.read(read_fd, 100) == READY
    timings.start["posix_spawn"].append((time.monotonic() - begun) * 1e3)
    os.close(read_fd)
    os.waitpid(pid, 0)


def time_driver(way: str, driver: SandboxDriver, tree: Path, network: LabNetwork | None, timings: Timings) -> None:
    """One start and removal by ``driver``."""
    image = driver.build(WorkloadImage("bench", "sha256:0", tree, tree, 0, 0, 0))
    name = f"bench-{len(timings.start[way])}"
    lease = network.lease() if network else None
    begun = time.monotonic()
    with driver.start(image, Launch(name, COMMAND, ENVIRONMENT, Limits(), lease)) as instance:
        line = next(iter(instance.lines(10)))
        timings.start[way].append((line.at_seconds - begun) * 1e3)
        if way == "container":
            timings.add_steps(begun, instance.steps, line.at_seconds)
        for _ in instance.lines(10):
            pass
        ended = time.monotonic()
    timings.teardown[way].append((time.monotonic() - ended) * 1e3)


def show(timings: Timings) -> None:
    """Print medians, tails and ratios."""
    base = statistics.median(timings.start["native"])
    print(
        f"{'request to first line':32}{'median ms':>10}{'p10 ms':>10}{'p95 ms':>10}{'x native':>10}{'removal ms':>12}"
    )
    for way, values in timings.start.items():
        removal = f"{statistics.median(timings.teardown[way]):12.2f}" if way in timings.teardown else ""
        quantiles = statistics.quantiles(values, n=20)
        print(
            f"{way:32}{statistics.median(values):10.2f}{quantiles[1]:10.2f}{quantiles[-1]:10.2f}"
            f"{statistics.median(values) / base:10.2f}{removal}"
        )
    print(f"\n{'steps of container':62}{'median ms':>10}")
    for step, values in timings.steps.items():
        print(f"{step[:60]:62}{statistics.median(values):10.3f}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between starts, as between trials")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    timings = Timings()
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isomark-bench-", dir=arguments.state)))
        journal = stack.enter_context(Journal(state / "owned"))
        (state / "scratch").mkdir()
        network = LabNetwork(journal)
        stack.callback(network.close)
        lab = Lab(state, state / "scratch", journal, network)
        tree = make_tree(state / "tree")
        native, container = NativeDriver(lab), ContainerDriver(lab)
        for driver in (native, container):
            stack.callback(driver.close)
            driver.check()
        ways: list[Callable[[], None]] = [
            lambda: time_spawn(tree, timings),
            lambda: time_driver("native", native, tree, None, timings),
            lambda: time_driver("container", container, tree, network, timings),
            lambda: time_driver("container, loopback only", container, tree, None, timings),
        ]
        for _ in range(arguments.starts):
            for way in random.sample(ways, len(ways)):
                time.sleep(arguments.pause)
                way()
    show(timings)


if __name__ == "__main__":
    main()
