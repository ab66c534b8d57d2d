"""What libvirt and isomark add to the start of a virtual server, beside the same QEMU by hand; nothing asserted.

    python tests/benchmarks/vm_start.py [--starts 10] [--accelerator qemu|kvm] [--state DIRECTORY]
                                        [--options 'console = "virtio"'] [--full]

All ways boot the same kernel and image in turns, in random order. By hand the clock runs from starting QEMU, with all
its files ready and the devices that the driver gives a guest by default, to reading ``isomark ready``; the driver's
from the call of ``start``. Each ``--options`` adds the driver with options as in a suite, on one line; ``--full`` adds
the whole server, whose image must be Debian's: all ways then start that of the suite ``quick``.
Needs root, libvirtd, a guest kernel and busybox-static.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vms"))

from small_image import PATH, small_image

from bench.channel import Channel
from bench.driver import Instance, Lab, Launch
from bench.errors import IsomarkError
from bench.lab import open_lab
from bench.model import Image, Limits, WorkloadImage
from bench.state import state_directory
from bench.suite import find_suite
from bench.units import GIB
from bench.workload import find_workload
from runtimes.oci.workload_image import build_workload_image
from vms.console import ConsoleListener
from vms.driver import LibvirtDriver
from vms.initramfs import trial_archive, write_initrd
from vms.options import parse_options
from vms.qcow2 import write_overlay
from vms.qemu import FIRMWARE, KERNEL_ARGUMENTS, KVM, QEMU

READY_SECONDS: Final = 300.0
SCRIPT: Final = "echo isomark ready; read line"
HAND: Final = "by hand"
DRIVER: Final = "driver"
FULL: Final = 'guest = "full", firmware = "bios"'

Moments = list[tuple[str, float]]
"""What began when, in order; the last is ``ready``."""
Way = Callable[[Launch], Moments]


def by_driver(driver: LibvirtDriver, image: Image) -> Way:
    def start(launch: Launch) -> Moments:
        with driver.start(image, launch) as server:
            _await_ready(server)
            steps = [(step.name, step.at_seconds) for step in server.steps]
            events = [(event.name, event.at_seconds) for event in server.events if event.name != "spawned"]
        return sorted([*steps, *events], key=lambda moment: moment[1])

    return start


def by_hand(accelerator: str, image: Image, lab: Lab) -> Way:
    """Start the same command as libvirt does, without what libvirt needs for itself."""

    def start(launch: Launch) -> Moments:
        folder = lab.scratch / launch.name
        folder.mkdir()
        write_initrd(folder / "initrd", Path(image.parts["initramfs"]), trial_archive(launch))
        write_overlay(folder / "disk", image.location, image.location.stat().st_size)
        environment = {**os.environ, "ISOMARK_OWNER": lab.journal.owner.id}
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, folder)
            undo.enter_context(lab.journal.owning("process", marker=lab.journal.owner.id))
            listener = undo.enter_context(ConsoleListener(folder / "console", None))
            begun = time.monotonic()
            process = undo.enter_context(
                subprocess.Popen(_command(accelerator, image, launch, folder), env=environment)
            )
            undo.callback(process.kill)
            peer, opened = listener.accept()
            fd = peer.detach()
            channel = Channel(fd, fd)
            undo.callback(channel.close)
            for line in channel.lines(READY_SECONDS):
                if line.text == "isomark ready":
                    break
            events = [(event.name, event.at_seconds) for event in channel.events]
        return [("start QEMU", begun), ("hypervisor sets up the machine", opened), *events]

    return start


def _command(accelerator: str, image: Image, launch: Launch, folder: Path) -> list[str]:
    kvm = accelerator == "kvm"
    assert launch.lease is not None
    return [
        "qemu-system-x86_64", "-machine", "q35,usb=off", "-accel", "kvm" if kvm else "tcg",
        "-cpu", "host" if kvm else "max", "-m", str(launch.limits.memory_bytes >> 20),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-bios", FIRMWARE,
        "-kernel", image.parts["kernel"], "-initrd", str(folder / "initrd"), "-append", " ".join(KERNEL_ARGUMENTS),
        "-drive", f"if=none,id=d,file={folder / 'disk'},format=qcow2,cache=writeback,aio=threads",
        "-device", "virtio-blk-pci,drive=d,bus=pcie.0,addr=2",
        "-netdev", f"tap,id=n,ifname={launch.lease.interface},script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=n,mac={launch.lease.mac},bus=pcie.0,addr=3,romfile=",
        "-chardev", f"socket,id=c,path={folder / 'console'}", "-device", "isa-serial,chardev=c",
    ]  # fmt: skip


def _await_ready(instance: Instance) -> None:
    for line in instance.lines(READY_SECONDS):
        if line.text == "isomark ready":
            return
    sys.exit("a guest never was ready:\n" + "\n".join(instance.tail))


def prepare(lab: Lab, arguments: argparse.Namespace, place: Path, undo: ExitStack) -> dict[str, Way]:
    """Make the images and return the ways to start them; ``undo`` closes the drivers and removes the images."""
    bits = _server_bits(lab) if arguments.full else small_image(place / "tree")
    ways: dict[str, Way] = {}
    for text in ("", *arguments.options, *([FULL] if arguments.full else [])):
        options = tomllib.loads(f"it = {{ {text} }}")["it"]
        driver = LibvirtDriver(lab, KVM if arguments.accelerator == "kvm" else QEMU, parse_options(options))
        undo.callback(driver.close)
        driver.check()
        image = driver.build(bits)
        if not arguments.full and "disk" in image.parts:
            for path in (image.location, image.location.with_suffix(".json")):
                undo.callback(path.unlink, missing_ok=True)
        ways[f"{DRIVER} {text}".strip()] = by_driver(driver, image)
        if not text:
            ways[HAND] = by_hand(arguments.accelerator, image, lab)
    return ways


def _server_bits(lab: Lab) -> WorkloadImage:
    workloads = [find_workload(name) for name in find_suite("quick").workloads]
    return build_workload_image(workloads, lab.state, lab.journal, print)


def measure(lab: Lab, ways: Mapping[str, Way], starts: int, limits: Limits) -> dict[str, list[Moments]]:
    """Start each way ``starts`` times, after one that warms the caches."""
    if lab.network is None:
        sys.exit("no lab network: run as root")
    timings: dict[str, list[Moments]] = defaultdict(list)
    for number in range(starts + 1):
        for position, way in enumerate(random.sample(sorted(ways), len(ways))):
            name = f"iso-{lab.journal.owner.id}-{number}-{position}"
            environment = {"PATH": f"/usr/bin:{PATH['PATH']}"}
            moments = ways[way](Launch(name, ("/bin/sh", "-c", SCRIPT), environment, limits, lab.network.lease()))
            if number:
                timings[way].append(moments)
    return timings


def report(timings: Mapping[str, list[Moments]]) -> None:
    """Print the medians of all steps, and each way's ratio to the one by hand, or the driver's to the full guest's."""
    totals = {way: [moments[-1][1] - moments[0][1] for moments in starts] for way, starts in timings.items()}
    for way, starts in timings.items():
        print(f"{way}: {_milliseconds(totals[way])}")
        steps: dict[str, list[float]] = defaultdict(list)
        for moments in starts:
            for (name, at), (_, until) in pairwise(moments):
                steps[name].append(until - at)
        for name, seconds in steps.items():
            print(f"    from {name:38}{_milliseconds(seconds)}")
    for way in sorted(totals.keys() - {HAND}):
        print(f"{way}: {_ratio(totals[way], totals[HAND])} by hand")
    for way in sorted(totals.keys() - {HAND, DRIVER}):
        print(f"{way}: {_ratio(totals[way], totals[DRIVER])} the driver's default")


def _milliseconds(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:9.1f} ms median, {min(seconds) * 1e3:9.1f} least of {len(seconds)}"


def _ratio(mine: list[float], theirs: list[float]) -> str:
    pairs = [one / other for one, other in zip(mine, theirs, strict=True)]
    ratio = statistics.median(mine) / statistics.median(theirs)
    least = min(mine) / min(theirs)
    return f"{ratio:.3f} × (median of the pairs {statistics.median(pairs):.3f}, of the least {least:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--accelerator", choices=("qemu", "kvm"), default="qemu")
    parser.add_argument("--state", type=Path, default=state_directory())
    parser.add_argument("--options", action="append", default=[], metavar="TOML")
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    limits = Limits(memory_bytes=GIB) if arguments.full else Limits()
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as place:
        try:
            with open_lab(arguments.state) as lab, ExitStack() as undo:
                ways = prepare(lab, arguments, Path(place), undo)
                timings = measure(lab, ways, arguments.starts, limits)
        except IsomarkError as error:
            sys.exit(f"{error.message}\n{error.hint}")
        report(timings)


if __name__ == "__main__":
    main()
