"""What about this host keeps drivers from running or makes figures doubtful, each with its remedy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

import psutil

from bench.driver import CHECK_ENTRY_POINTS, Finding, Lab
from bench.drivers import checked_driver, driver_entry_points
from bench.errors import DriverUnavailable
from bench.fingerprint import CPU, cpu_flags, read, turbo
from bench.units import GIB, format_bytes

Check = Callable[[Path], list[Finding]]

NEEDED_MEMORY_BYTES: Final = 2 * GIB
NEEDED_DISK_BYTES: Final = 4 * GIB
PROGRAMS: Final = {
    "mmdebstrap": ("mmdebstrap", "images cannot be built"),
    "wrk": ("wrk", "the http workload has no load"),
    "ip": ("iproute2", "instances get no network"),
    "nsenter": ("util-linux", "load cannot reach the lab network"),
}
"""Program -> Debian package and what is lost without it."""


def examine(state: Path, lab: Lab | None) -> list[Finding]:
    """Every finding about the host, then one for each driver.

    ``lab`` is what drivers need to be tried; without one they are left out.
    """
    found: list[Finding] = []
    for point in sorted(entry_points(group=CHECK_ENTRY_POINTS)):
        found += _call(point.name, point.load, state)
    if lab is not None:
        found += [examine_driver(name, lab) for name in sorted(driver_entry_points())]
    return found


def examine_driver(name: str, lab: Lab) -> Finding:
    """Try driver ``name`` and say whether it is available."""
    try:
        driver = checked_driver(name, lab)
        described = driver.describe()
        driver.close()
    except DriverUnavailable as error:
        return Finding(f"driver {name}", "problem", error.message, error.hint)
    engine = described.get("engine", driver.kind)
    emulated = ", emulated CPU" if described.get("emulated") == "yes" else ""
    return Finding(f"driver {name}", "ok", f"available: {engine}{emulated}", facts=described)


def host_findings(state: Path) -> list[Finding]:
    """Findings about privileges, programs, memory, disk and CPU; those of a room are with that room."""
    return [*_privilege(), *_programs(), *_memory(), *_disk(state), *_cpu(), *_load()]


def _call(name: str, load: Callable[[], Check], state: Path) -> list[Finding]:
    try:
        check = load()
    except ImportError as error:
        return [Finding(name, "problem", f"needs {error.name or error}", "script/bootstrap")]
    return check(state)


def _privilege() -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("privilege", "ok", "root")
    else:
        yield Finding(
            "privilege", "problem", "not root: no lab network, no cgroup limits, no local virtual servers",
            "run as root, for instance: sudo script/run",
        )  # fmt: skip


def _programs() -> Iterator[Finding]:
    missing = {program: told for program, told in PROGRAMS.items() if shutil.which(program) is None}
    for program, (package, lost) in missing.items():
        yield Finding("programs", "problem", f"{program} is missing: {lost}", f"apt-get install {package}")
    if not missing:
        yield Finding("programs", "ok", f"{', '.join(PROGRAMS)} are there")


def _memory() -> Iterator[Finding]:
    available = psutil.virtual_memory().available
    if available < NEEDED_MEMORY_BYTES:
        yield Finding(
            "memory", "warning", f"only {format_bytes(available)} available: trials may swap or fail",
            f"stop something; {format_bytes(NEEDED_MEMORY_BYTES)} is enough for the suite quick",
        )  # fmt: skip
    else:
        yield Finding("memory", "ok", f"{format_bytes(available)} available")
    if psutil.swap_memory().used > 0:
        yield Finding("swap", "note", "swap is in use: memory figures may be too low", "swapoff -a")


def _disk(state: Path) -> Iterator[Finding]:
    existing = state
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < NEEDED_DISK_BYTES:
        yield Finding(
            "disk", "problem", f"only {format_bytes(free)} free at {state}",
            f"free {format_bytes(NEEDED_DISK_BYTES)}, or set ISOMARK_STATE to another place",
        )  # fmt: skip
    else:
        yield Finding("disk", "ok", f"{format_bytes(free)} free at {state}")


def _cpu() -> Iterator[Finding]:
    governor = read(CPU / "cpu0/cpufreq/scaling_governor")
    if governor not in (None, "performance"):
        yield Finding(
            "frequency governor", "warning", f"{governor}: the clock changes with the load",
            "cpupower frequency-set --governor performance",
        )  # fmt: skip
    if turbo() == "on":
        file = "intel_pstate/no_turbo (write 1)" if (CPU / "intel_pstate").exists() else "cpufreq/boost (write 0)"
        yield Finding("turbo", "note", "on: the clock depends on heat and on the other cores", f"{CPU}/{file}")
    if read(CPU / "smt/active") == "1":
        yield Finding(
            "SMT", "note", "on: two threads share a core, so a neighbour costs throughput",
            f"echo off > {CPU}/smt/control, for the length of the run",
        )  # fmt: skip
    if "hypervisor" in cpu_flags():
        yield Finding(
            "host", "note", "is itself a virtual machine: its neighbours and its hypervisor are in every figure",
            "repeat on bare metal before quoting absolute figures",
        )  # fmt: skip


def _load() -> Iterator[Finding]:
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.5 * cpus:
        yield Finding(
            "load", "warning", f"{load:.1f} on {cpus} CPUs: something else is running", "wait for it, or stop it"
        )
