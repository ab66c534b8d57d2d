"""Whether guests that boot at once cost more than the CPUs that they share explain; nothing asserted.

    python tests/benchmarks/vm_parallel.py [--guests 8] [--rounds 3] [--state DIRECTORY]

One guest boots alone, then all at once, in turns. Beside the wall time from the first start to the last ready stand the
CPU seconds that the guests' hypervisors used, and all that the host's CPUs were busy. What the CPUs explain is the CPU
time divided by their number, but no less than a guest alone takes. Needs root, libvirtd, a guest kernel and
busybox-static, and an otherwise idle host.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vms"))

from small_image import PATH, small_image

from bench.driver import Instance, Lab, Launch
from bench.errors import IsomarkError
from bench.lab import open_lab
from bench.model import Image, Limits
from bench.state import state_directory
from vms.driver import LibvirtDriver, qemu
from vms.instance import VirtualServer

numbers = itertools.count()
READY_SECONDS: Final = 300.0
MEMORY_BYTES: Final = 256 * 1024**2
_BUSY: Final = (0, 1, 2, 5, 6)
"""Of the columns of /proc/stat (proc(5)): user, nice, system, irq, softirq."""


@dataclass(frozen=True)
class Window:
    """From the first start to the last ready, in seconds: of the clock, of the hypervisors' CPUs, of all CPUs."""

    wall: float
    guests: float
    host: float


def boot(driver: LibvirtDriver, image: Image, lab: Lab, guests: int) -> Window:
    """Start ``guests`` one right after the other, and wait until all are ready."""
    command = ("/bin/sh", "-c", "echo isomark ready; read line")
    with ExitStack() as running, ThreadPoolExecutor(guests) as readers:
        busy, begun = _host_seconds(), time.monotonic()
        servers: list[VirtualServer] = []
        ready = []
        for _ in range(guests):
            name = f"iso-{lab.journal.owner.id}-p{next(numbers)}"  # libvirt may take a while to forget the last
            lease = lab.network.lease() if lab.network is not None else None
            launch = Launch(name, command, PATH, Limits(memory_bytes=MEMORY_BYTES), lease)
            servers.append(running.enter_context(driver.start(image, launch)))
            ready.append(readers.submit(await_ready, servers[-1]))
        wall = max(one.result() for one in ready) - begun
        return Window(wall, sum(server.cpu_seconds() for server in servers), _host_seconds() - busy)


def await_ready(instance: Instance) -> float:
    """Read the console until its guest is ready, and return when it was; each guest has a reader, so none waits."""
    for line in instance.lines(READY_SECONDS):
        if line.text == "isomark ready":
            return line.at_seconds
    raise SystemExit("a guest never was ready:\n" + "\n".join(instance.tail))


def _host_seconds() -> float:
    columns = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(columns[number]) for number in _BUSY) / os.sysconf("SC_CLK_TCK")


def report(alone: list[Window], together: list[Window], guests: int) -> None:
    """Print medians, and the wall time beside what explains it."""
    cores = len(os.sched_getaffinity(0))

    def median(windows: list[Window], pick: Callable[[Window], float]) -> float:
        return statistics.median(map(pick, windows))

    for title, windows in (("1 guest", alone), (f"{guests} guests", together)):
        wall, mine, host = (median(windows, pick) for pick in (_wall, _guests, _host))
        print(f"{title:>10}: wall {wall:6.2f} s, CPU of the guests {mine:6.2f} s, of the host {host:6.2f} s")
    each = [window.guests / guests for window in together]
    print(f"CPU of each of {guests}: {statistics.median(each) / median(alone, _guests):.2f} × that of one alone")
    least = median(alone, _wall)
    used = [window.wall / max(window.host / cores, least) for window in together]
    print(f"wall of {guests}: {statistics.median(used):.2f} × what the host's CPU time on {cores} CPUs explains")
    predicted = max(guests * median(alone, _host) / cores, least)
    ratio = median(together, _wall) / predicted
    print(f"wall of {guests}: {ratio:.2f} × {guests} times the CPU time of one on {cores} CPUs")


def _wall(window: Window) -> float:
    return window.wall


def _guests(window: Window) -> float:
    return window.guests


def _host(window: Window) -> float:
    return window.host


def measure(lab: Lab, guests: int, rounds: int, place: Path) -> tuple[list[Window], list[Window]]:
    """Boot one and ``guests`` in turns, ``rounds`` times, after a guest that warms the caches."""
    driver = qemu(lab)
    with ExitStack() as undo:
        undo.callback(driver.close)
        driver.check()
        image = driver.build(small_image(place / "tree"))
        for path in (image.location, image.location.with_suffix(".json")):
            undo.callback(path.unlink, missing_ok=True)
        boot(driver, image, lab, 1)
        windows = [(boot(driver, image, lab, 1), boot(driver, image, lab, guests)) for _ in range(rounds)]
    alone, together = zip(*windows, strict=True)
    return list(alone), list(together)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--state", type=Path, default=state_directory())
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as place:
        try:
            with open_lab(arguments.state) as lab:
                alone, together = measure(lab, arguments.guests, arguments.rounds, Path(place))
        except IsomarkError as error:
            sys.exit(f"{error.message}\n{error.hint}")
        report(alone, together, arguments.guests)


if __name__ == "__main__":
    main()
