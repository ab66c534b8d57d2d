"""Building a lab: dom0's disk and boot files are made, the machine is booted once and frozen when libvirt answers."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.clean import remove_directory
from bench.errors import HostError
from bench.journal import OWNER_VARIABLE, Journal
from bench.units import GIB
from runtimes.oci.debian import Progress
from xenlab.boot import write_boot_files
from xenlab.machine import machine
from xenlab.packages import kernel_package, unpack_kernel
from xenlab.recipe import key
from xenlab.tree import make_tree

DISK: Final = "disk.raw"
STATE: Final = "state"
DISK_BYTES: Final = 4 * GIB
"""Sparse: room for what tests upload."""

READY, FAILED = "XENLAB READY", "XENLAB FAILED"
"""What files/start-dom0 says at its end."""

BOOT_SECONDS: Final = 240.0
LIBVIRT_SECONDS: Final = 60.0
_DISK_OPTIONS: Final = ("-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal",
                        "-E", "lazy_itable_init=0,assume_storage_prezeroed=1")  # fmt: skip


@contextmanager
def built_lab(root: Path, journal: Journal, progress: Progress) -> Iterator[Path]:
    """Offer the directory of the built lab, below ``root``; it is built first if need be.

    As long as the block lasts it is not removed; a machine that has opened its files needs it no longer.

    Raises:
        HostError, ImageError, InstanceError: it cannot be built.
    """
    with told("keep a lab"):
        root.mkdir(parents=True, exist_ok=True)
    path = root / key()
    while True:
        with locked(root, fcntl.LOCK_SH):
            if path.exists():
                yield path
                return
        with locked(root, fcntl.LOCK_EX):
            if not path.exists():
                with told("build the lab"):
                    _build(path, journal, progress)


@contextmanager
def locked(directory: Path, how: int) -> Iterator[None]:
    """Hold the lock of ``directory`` itself (flock(2)), which its holder's death releases."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Turn an OSError in the block into ours.

    Raises:
        HostError: something cannot be written, or a program is missing.
    """
    try:
        yield
    except OSError as error:
        hint = "set ISOMARK_STATE to a directory that you may write, with a gigabyte free; script/bootstrap"
        raise HostError(f"cannot {doing}: {error}", hint=hint) from error


def _build(path: Path, journal: Journal, progress: Progress) -> None:
    if os.geteuid() != 0:  # files of many owners are unpacked and put on a disk
        raise HostError("only root can build the lab", hint="sudo script/xen-lab up")
    work = path.parent / f".{path.name}-{secrets.token_hex(4)}"
    owned = (journal.own("directory", path=str(work)), journal.own("process", marker=journal.owner.id))
    try:
        lab = work / "lab"
        lab.mkdir(parents=True)
        _make_files(lab, work, journal, progress)
        _freeze(lab, work, journal, progress)
        _settle(lab, path)
    finally:
        remove_directory({"path": str(work)})
        for entry in owned:
            journal.gone(entry)
    for old in path.parent.iterdir():  # of other recipes, and what killed builds left: we are alone here
        if old != path:
            remove_directory({"path": str(old)})


def _make_files(lab: Path, work: Path, journal: Journal, progress: Progress) -> None:
    environment = {**os.environ, OWNER_VARIABLE: journal.owner.id}
    with ThreadPoolExecutor(1) as aside:  # mmdebstrap leaves the second CPU idle
        fetched = aside.submit(unpack_kernel, kernel_package(), work, environment)
        tree = make_tree(work, environment, journal, progress)
        kernel = fetched.result()
    progress("kernels and disk")
    write_boot_files(tree, kernel, lab)
    shutil.rmtree(tree / "boot")
    with (lab / DISK).open("xb") as disk:
        disk.truncate(DISK_BYTES)
    command = ["mke2fs", *_DISK_OPTIONS, "-d", str(tree), str(lab / DISK)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise HostError(f"mke2fs cannot make dom0's disk: {ended.stderr.strip()}", hint=f"df -h {work}")


def _freeze(lab: Path, work: Path, journal: Journal, progress: Progress) -> None:
    progress("first boot of Xen and dom0")
    with machine(lab, lab / DISK, work, journal) as booted:
        booted.wait_for(READY, FAILED, BOOT_SECONDS)
        booted.wait_for_libvirt(LIBVIRT_SECONDS)
        progress("freezing")
        booted.monitor.freeze(lab / STATE)


def _settle(lab: Path, path: Path) -> None:
    """Flush every file, then give the lab its name: it is there complete, or not at all."""
    for file in (*lab.iterdir(), lab):
        _flush(file)
    lab.rename(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
