"""A running lab, thawed from the built one: its own overlay, port and process, gone at the end of a block."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.clean import remove_directory
from bench.journal import Journal
from runtimes.oci.debian import Progress
from vms.qcow2 import write_overlay
from xenlab.build import DISK, DISK_BYTES, LIBVIRT_SECONDS, STATE, built_lab, told
from xenlab.machine import Machine, machine


def lab_root(state: Path) -> Path:
    """Where built labs are kept."""
    return state / "labs/xen"


@contextmanager
def running_lab(state: Path, journal: Journal, progress: Progress) -> Iterator[Machine]:
    """Run a lab for the length of a block; it is built first if need be. ``Machine.uri`` is for libvirt.

    Raises:
        HostError, ImageError, InstanceError: it cannot be built or started.
    """
    scratch = state / "scratch" / f"xenlab-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        stack.callback(journal.gone, journal.own("directory", path=str(scratch)))
        stack.callback(remove_directory, {"path": str(scratch)})
        with built_lab(lab_root(state), journal, progress) as files:
            overlay = scratch / "disk.qcow2"
            with told("start the lab"):
                scratch.mkdir(parents=True)
                write_overlay(overlay, files / DISK, DISK_BYTES)
            lab = stack.enter_context(machine(files, overlay, scratch, journal, frozen=True))
            lab.monitor.thaw(files / STATE)
        lab.wait_for_libvirt(LIBVIRT_SECONDS)
        yield lab
