"""What libvirt and isomark add to the start of a virtual server, beside the same QEMU by hand; nothing asserted.

    python tests/benchmarks/vm_start.py [--starts 10] [--accelerator qemu|kvm] [--state DIRECTORY]

Both ways boot the same kernel, initramfs and disk with the same devices, in turns and in random
order, into the shell of a small busybox tree. By hand the clock runs from starting QEMU, with all its
files ready, to reading ``isomark ready``; the driver's from the call of ``start`` and, beside it,
from handing the domain to libvirt. Needs root, libvirtd, a guest kernel and busybox-static.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.channel import Channel
from bench.driver import Lab, Launch
from bench.errors import IsomarkError
from bench.lab import open_lab
from bench.model import Image, Limits, WorkloadImage
from bench.state import state_directory
from vms.console import ConsoleListener
from vms.driver import LibvirtDriver
from vms.initramfs import trial_archive, write_initrd
from vms.qcow2 import write_overlay
from vms.qemu import KERNEL_ARGUMENTS, KVM, QEMU

if TYPE_CHECKING:
    import libvirt

READY_SECONDS = 60.0
SCRIPT = "echo isomark ready; read line"


class TimedDriver(LibvirtDriver):
    """The driver, which also says when it turned to libvirt and when that let the guest run."""

    asked = created = 0.0

    def _create(self, xml: str, flags: int = 0) -> libvirt.virDomain:
        self.asked = time.monotonic()
        domain = super()._create(xml, flags)
        self.created = time.monotonic()
        return domain


def make_tree(root: Path) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("busybox-static is not installed")
    for name in ("bin", "dev", "isomark", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    return root


def await_ready(channel: Channel) -> dict[str, float]:
    for line in channel.lines(READY_SECONDS):
        if line.text == "isomark ready":
            break
    return {event.name: event.at_seconds for event in channel.events}


def by_driver(driver: TimedDriver, image: Image, launch: Launch) -> dict[str, float]:
    with driver.start(image, launch) as server:
        for line in server.lines(READY_SECONDS):
            if line.text == "isomark ready":
                break
        at = {event.name: event.at_seconds for event in server.events}
    begun = at["spawned"]
    return {
        "start to ready": at["ready"] - begun,
        "createXML to ready": at["ready"] - driver.asked,
        "  files, journal, schema": driver.asked - begun,
        "  createXML": driver.created - driver.asked,
        "  running to first kernel line": at["kernel"] - driver.created,
        "  kernel to init": at["init"] - at["kernel"],
        "  init to ready": at["ready"] - at["init"],
    }


def by_hand(driver: TimedDriver, image: Image, launch: Launch, lab: Lab) -> dict[str, float]:
    """Start the same command as libvirt does, without what libvirt needs for itself."""
    folder = lab.scratch / launch.name
    folder.mkdir()
    write_initrd(folder / "initrd", Path(image.parts["initramfs"]), trial_archive(launch))
    write_overlay(folder / "disk", image.location, image.location.stat().st_size)
    assert launch.lease is not None
    kvm = driver.name == "kvm"
    command = [
        "qemu-system-x86_64", "-machine", "q35,usb=off", "-accel", "kvm" if kvm else "tcg",
        "-cpu", "host" if kvm else "max", "-m", str(launch.limits.memory_bytes >> 20),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", image.parts["kernel"], "-initrd", str(folder / "initrd"), "-append", " ".join(KERNEL_ARGUMENTS),
        "-drive", f"if=none,id=d,file={folder / 'disk'},format=qcow2,cache=writeback,aio=threads",
        "-device", "virtio-blk-pci,drive=d,bus=pcie.0,addr=2",
        "-netdev", f"tap,id=n,ifname={launch.lease.interface},script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=n,mac={launch.lease.mac},bus=pcie.0,addr=3,romfile=",
        "-chardev", f"socket,id=c,path={folder / 'console'}", "-device", "isa-serial,chardev=c",
    ]  # fmt: skip
    environment = {**os.environ, "ISOMARK_OWNER": lab.journal.owner.id}
    with (
        lab.journal.owning("process", marker=lab.journal.owner.id),
        ConsoleListener(folder / "console", None) as listener,
    ):
        begun = time.monotonic()
        process = subprocess.Popen(command, env=environment)
        try:
            fd, _ = listener.accept()
            opened = time.monotonic()
            channel = Channel(fd, fd)
            at = await_ready(channel)
            channel.close()
        finally:
            process.kill()
            process.wait()
    shutil.rmtree(folder)
    return {
        "start to ready": at["ready"] - begun,
        "  QEMU opens the console": opened - begun,
        "  running to first kernel line": at["kernel"] - opened,
        "  kernel to init": at["init"] - at["kernel"],
        "  init to ready": at["ready"] - at["init"],
    }


def measure(lab: Lab, accelerator: str, starts: int, tree: Path) -> dict[str, dict[str, list[float]]]:
    driver = TimedDriver(lab, KVM if accelerator == "kvm" else QEMU)
    driver.check()
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    digest = f"sha256:{hashlib.sha256((tree / 'bin/busybox').read_bytes()).hexdigest()}"
    image = driver.build(WorkloadImage("busybox", digest, tree, tree, size, size, size))
    timings: dict[str, dict[str, list[float]]] = {"by hand": defaultdict(list), "driver": defaultdict(list)}
    network = lab.network
    if network is None:
        sys.exit("no lab network: run as root")
    try:
        for number in range(starts + 1):
            for way in random.sample(sorted(timings), 2):
                name = f"iso-{lab.journal.owner.id}-{number}{way[0]}"
                launch = Launch(name, ("/bin/sh", "-c", SCRIPT), {"PATH": "/bin"}, Limits(), network.lease())
                took = by_driver(driver, image, launch) if way == "driver" else by_hand(driver, image, launch, lab)
                for step, seconds in took.items() if number else ():  # the first pair warms the caches
                    timings[way][step].append(seconds)
    finally:
        driver.close()
        for path in (image.location, image.location.with_suffix(".json")):
            path.unlink(missing_ok=True)
    return timings


def report(timings: dict[str, dict[str, list[float]]], starts: int) -> None:
    for way, steps in timings.items():
        print(f"{way}, median of {starts} [least], milliseconds")
        for step, seconds in steps.items():
            print(f"  {step:34}{statistics.median(seconds) * 1e3:9.1f} [{min(seconds) * 1e3:8.1f}]")
    hand, driver = timings["by hand"]["start to ready"], timings["driver"]
    for step in ("start to ready", "createXML to ready"):
        pairs = [mine / theirs for mine, theirs in zip(driver[step], hand, strict=True)]
        ratio = statistics.median(driver[step]) / statistics.median(hand)
        print(f"{step}: {ratio:.3f} × by hand (median of the pairs' ratios {statistics.median(pairs):.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--accelerator", choices=("qemu", "kvm"), default="qemu")
    parser.add_argument("--state", type=Path, default=state_directory())
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as place:
        try:
            with open_lab(arguments.state) as lab:
                timings = measure(lab, arguments.accelerator, arguments.starts, make_tree(Path(place) / "tree"))
        except IsomarkError as error:
            sys.exit(f"{error.message}\n{error.hint}")
        report(timings, arguments.starts)


if __name__ == "__main__":
    main()
