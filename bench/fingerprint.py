"""What the host was: identity, which must be equal for results to be compared, and conditions, which are reported."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from bench.model import Workload, WorkloadImage
from bench.result import DriverRecord
from bench.suite import Suite

CPU: Final = Path("/sys/devices/system/cpu")


def identity(
    suite: Suite, workloads: Sequence[Workload], image: WorkloadImage, drivers: Sequence[DriverRecord]
) -> dict[str, str]:
    """What must be equal: the work asked for, the bits, the drivers, the machine."""
    loads = tuple((workload.name, workload.load, workload.instances) for workload in workloads)
    work = (loads, suite.rounds, suite.warmup_rounds, suite.round_seconds, suite.limits)
    facts = {
        "work": hashlib.sha256(repr(work).encode()).hexdigest()[:16],
        "image": image.digest,
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpus": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": platform.release(),
    }
    for driver in drivers:
        told = {key: value for key, value in sorted(driver.description.items()) if key != "parity"}
        facts[f"driver {driver.name}"] = "; ".join(f"{key} {value}" for key, value in told.items())
    return facts


def conditions(state: Path) -> dict[str, str]:
    """What may differ and is told: load, clocks, frequency scaling, mitigations, memory. Unknown is left out."""
    memory = psutil.virtual_memory()
    facts: dict[str, str | None] = {
        "load average, 1 min": f"{os.getloadavg()[0]:.2f}",
        "memory available": f"{memory.available / 2**30:.1f} GiB of {memory.total / 2**30:.1f} GiB",
        "operating system": _os_name(),
        "host is itself virtual": "yes" if "hypervisor" in cpu_flags() else "no",
        "clock source": read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        "frequency governor": read(CPU / "cpu0/cpufreq/scaling_governor"),
        "turbo": turbo(),
        "SMT": read(CPU / "smt/control"),
        "transparent huge pages": selected(read(Path("/sys/kernel/mm/transparent_hugepage/enabled"))),
        "KSM": {"0": "off", "1": "on"}.get(read(Path("/sys/kernel/mm/ksm/run")) or ""),
        "CPU mitigations": mitigations(),
        "file system of the state directory": file_system(state),
        "Python": platform.python_version(),
    }
    return {key: value for key, value in facts.items() if value is not None}


def read(path: Path) -> str | None:
    """The stripped text of a sysfs or procfs file, ``None`` where the kernel has none."""
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def cpu_model() -> str:
    """The first ``model name`` of /proc/cpuinfo, or the machine type where there is none."""
    return _cpuinfo("model name") or platform.machine()


def cpu_flags() -> frozenset[str]:
    """The first ``flags`` line of /proc/cpuinfo; empty where there is none."""
    return frozenset((_cpuinfo("flags") or "").split())


def turbo() -> str | None:
    """``on`` or ``off`` by intel_pstate's or acpi-cpufreq's own file, ``None`` where neither is visible."""
    if (no_turbo := read(CPU / "intel_pstate/no_turbo")) is not None:
        return "off" if no_turbo == "1" else "on"
    if (boost := read(CPU / "cpufreq/boost")) is not None:
        return "on" if boost == "1" else "off"
    return None


def mitigations() -> str:
    """How many CPU vulnerabilities the kernel mitigates, and the names of those it leaves open."""
    states = {path.name: read(path) or "" for path in sorted((CPU / "vulnerabilities").glob("*"))}
    exposed = [name for name, state in states.items() if state.startswith("Vulnerable")]
    mitigated = sum(state.startswith("Mitigation") for state in states.values())
    return f"{mitigated} active" + (f", open: {', '.join(exposed)}" if exposed else "")


def file_system(path: Path) -> str | None:
    """The type of the file system that ``path`` (or its nearest existing parent) is on."""
    while not path.exists():
        path = path.parent
    best = max(
        (part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)),
        key=lambda part: len(part.mountpoint),
        default=None,
    )
    return None if best is None else best.fstype


def selected(text: str | None) -> str | None:
    """The word in brackets of a sysfs choice such as ``always [madvise] never``."""
    if text is None or "[" not in text:
        return text
    return text.partition("[")[2].partition("]")[0]


def _cpuinfo(key: str) -> str | None:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _os_name() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None
