"""A made-up result of the suite ``vms``: eight drivers, every virtual server emulated, all that issue 4 measures.

Steps of a container and of a whole server, first answers, a life, instances counted on the host, and the least memory.
qemu-uefi fails every trial of the life; xen-hvm tells its memory through libvirt only; native has no verbs but two.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from synthetic_result import DIGEST, LATENCY, MIB, REQUESTS, TAIL, WORKLOADS, synthetic_result

from bench import metrics
from bench.model import Case, Event, Limits, Outcome, OutcomeKind, Sample, Step, Trial
from bench.result import DriverRecord, Result, Slot, WorkloadRecord
from bench.schedule import schedule

START = {
    "native": 0.0041, "container": 0.0118, "qemu": 1.77, "qemu-full": 31.4, "qemu-uefi": 43.2, "xen-pv": 21.5,
    "xen-pvh": 19.8, "xen-hvm": 64.0,
}  # fmt: skip
MEMORY = {
    "native": 1.2, "container": 2.1, "qemu": 118.0, "qemu-full": 301.0, "qemu-uefi": 322.0, "xen-pv": 516.0,
    "xen-pvh": 517.0, "xen-hvm": 528.0,
}  # fmt: skip
"""MiB that one more instance takes."""
SPEED = {"native": 1.0, "container": 0.98, "qemu": 0.094, "qemu-full": 0.091, "qemu-uefi": 0.09, "xen-pv": 0.03,
         "xen-pvh": 0.031, "xen-hvm": 0.024}  # fmt: skip
FULL = ("qemu-full", "qemu-uefi")
SET_UP = (
    "tie its life to its parent's", "set its host name", "set up its loopback interface",
    "detach its mounts from the host's", "mount /proc", "mount /sys", "tree /dev", "mount /dev/mqueue",
    "mount /dev/pts", "mount /dev/shm", "hide /proc/acpi", "wait for its directories and cgroups", "enter its cgroups",
    "mount its root (overlay of /var/lib/isomark/trees/0123456789abcdef0123456789abcdef)", "mount /proc", "mount /sys",
    "enter its root", "wait for its network", "set up its network interface", "attach its console",
    "leave the host's keys", "change to its user", "run /isomark/boot/run", "filter its system calls",
    "run /isomark/boot/run",
)  # fmt: skip
CREATED = {"make its disk": 0.001, "create the domain": 0.002, "hypervisor sets up the machine": 0.03}
DIRECT = {**CREATED, "let it run": 0.11}
SERVER = {
    **CREATED, "let it run": 0.04, "loader": 0.1, "sysinit.target": 0.7, "basic.target": 0.78, "network.target": 0.86,
    "multi-user.target": 0.97,
}  # fmt: skip
LIFE = {
    "boot_seconds": 1.0, "suspend_seconds": 0.002, "resume_seconds": 0.004, "save_seconds": 0.3,
    "restore_seconds": 0.4, "snapshot_seconds": 0.05, "reboot_seconds": 0.9, "shutdown_seconds": 0.2,
    "destroy_seconds": 0.01,
}  # fmt: skip
"""Seconds beside those of the start."""
OF_ANY = ("boot_seconds", "shutdown_seconds", "destroy_seconds")
OF_CONTAINERS = (*OF_ANY, "suspend_seconds", "resume_seconds")
INSTANCES = 4
STUDIES = (
    WorkloadRecord("lifecycle", "Life cycle", "Through its life.", "lifecycle", ()),
    WorkloadRecord("density", "Density", "More and more of them.", "density", ()),
    WorkloadRecord("minimum", "Minimum", "The least memory.", "minimum", ()),
)


def servers_result(*, trials: int = 3, seed: int = 7, drivers: tuple[str, ...] = tuple(START)) -> Result:
    """Return the result with ``drivers``."""
    workloads = (*(record for record in WORKLOADS if record.name in ("boot", "http")), *STUDIES)
    slots = schedule([Case(record.name, driver) for record in workloads for driver in drivers], trials, seed)
    header = replace(
        synthetic_result().header,
        result_id="20250304-050607-7a7a7a",
        suite_name="vms",
        suite_title="What does a virtual server cost, from its creation to its end?",
        suite_source='title = "What does a virtual server cost"\n',
        seed=seed,
        trials_per_case=trials,
        workloads=workloads,
        drivers=tuple(map(_driver, drivers)),
        schedule=slots,
        limits=Limits(),
    )
    noise = random.Random(seed)
    return Result(Path("/nowhere"), header, tuple(_trial(slot, noise, 100.0 + 90 * slot.index) for slot in slots))


def _driver(name: str) -> DriverRecord:
    if name in ("native", "container"):
        kind: Any = "process" if name == "native" else "container"
        return DriverRecord(name, kind, False, {"engine": name}, "tree", 61 * MIB, 182 * MIB, 190 * MIB)
    size = 250 if name in FULL else 0
    host = {"hypervisor": "Xen 4.17, itself in QEMU" if name.startswith("xen") else "QEMU 7.2", "accelerator": "tcg"}
    return DriverRecord(
        name, "vm", True, host, "server disk" if size else "raw disk", (89 + size // 3) * MIB, (206 + size) * MIB,
        (271 + size) * MIB, image_virtual_bytes=3 * 1024 * MIB, image_used_bytes=(214 + size) * MIB,
    )  # fmt: skip


def _trial(slot: Slot, noise: random.Random, clock: float) -> Trial:
    case = slot.case
    trial = Trial(
        slot.index, slot.block, case, Outcome(OutcomeKind.OK), DIGEST, started_at="2025-03-04T05:06:07Z",
        wall_seconds=START[case.driver] + 6, round_seconds=3.0,
    )  # fmt: skip
    if case == Case("lifecycle", "qemu-uefi"):
        failed = Outcome(OutcomeKind.FAILED, "it does not resume within 240 s", "", TAIL)
        return replace(trial, outcome=failed, events=(Event("spawned", clock),))
    start = START[case.driver] * noise.uniform(0.95, 1.08) * (1.1 if case.workload == "http" else 1)
    samples = {"boot": _idle, "http": _served, "lifecycle": _life, "density": _density, "minimum": _minimum}[
        case.workload
    ]
    made = tuple(samples(case.driver, start, noise))
    return replace(
        trial, events=_events(case.driver, clock, start), steps=_steps(case, clock, start, made), samples=made
    )


def _events(driver: str, clock: float, start: float) -> tuple[Event, ...]:
    inner = () if START[driver] < 1 else (Event("kernel", clock + 0.2 * start), Event("init", clock + 0.6 * start))
    return (Event("spawned", clock), *inner, Event("ready", clock + start), Event("exited", clock + start + 3))


def _steps(case: Case, clock: float, start: float, samples: tuple[Sample, ...]) -> tuple[Step, ...]:
    answers = [Step("first answer", clock + each.value) for each in samples if each.metric == "first_answer_seconds"]
    if START[case.driver] > 1:
        shares = SERVER if case.driver in FULL else DIRECT
        return (*(Step(name, clock + share * start) for name, share in shares.items()), *answers)
    times = [start * sum(_weight(name) for name in SET_UP[:place]) / 100 + 0.4 * start for place in range(len(SET_UP))]
    return (*(Step(name, clock + at) for name, at in zip(SET_UP, times, strict=True)), *answers)


def _weight(name: str) -> float:
    """Per cent of the start that a step takes: most are short."""
    return 8.0 if name in ("enter its root", "wait for its network", "set up its network interface") else 0.7


def _idle(driver: str, start: float, noise: random.Random) -> Iterator[Sample]:
    yield Sample("boot_seconds", start)
    yield Sample("channel_delay_seconds", noise.gauss(1, 0.02) * (0.00005 if START[driver] < 1 else 0.002))
    memory = MEMORY[driver] * MIB * noise.gauss(1, 0.01)
    if driver.startswith("xen"):
        yield Sample("memory_hypervisor_bytes", 512 * MIB)
    else:
        yield Sample("memory_pss_bytes", 0.9 * memory)
        if driver != "native":
            yield Sample("memory_cgroup_bytes", 1.1 * memory)
    yield Sample("instance_disk_bytes", 4096 if START[driver] < 1 else 8 * MIB)


def _served(driver: str, start: float, noise: random.Random) -> Iterator[Sample]:
    yield Sample("first_answer_seconds", start + 0.0004 + 0.01 * (START[driver] > 1))
    for number in range(2):
        speed = SPEED[driver] * noise.gauss(1, 0.02)
        yield Sample(REQUESTS.name, 21_500 * speed, number, number == 0)
        yield Sample(LATENCY.name, 0.0004 / speed, number, number == 0)


def _life(driver: str, start: float, noise: random.Random) -> Iterator[Sample]:
    known = OF_ANY if driver == "native" else OF_CONTAINERS if driver == "container" else tuple(LIFE)
    missing = ("reboot_seconds", "snapshot_seconds") if driver.startswith("xen") else ()
    for name in known:
        if name not in missing:
            yield Sample(name, LIFE[name] * start * noise.gauss(1, 0.03))


def _density(driver: str, start: float, noise: random.Random) -> Iterator[Sample]:
    each = MEMORY[driver] * MIB
    elsewhere = driver.startswith("xen")
    shares = {"host_anonymous": 0.85, "host_shmem": 0.0, "host_huge_pages": 0.0, "host_page_tables": 0.01,
              "host_kernel_stacks": 0.001, "host_slab": 0.03, "host_percpu": 0.002, "host_vmalloc": 0.004,
              "host_swapped": 0.0}  # fmt: skip
    for count in range(INSTANCES + 1):
        used = each * count * noise.gauss(1, 0.01)
        if elsewhere:
            yield Sample("host_told_bytes", 900 * MIB + used, count)
            yield from (Sample("memory_hypervisor_bytes", 512 * MIB, count) for _ in range(count))
            continue
        yield Sample("host_used_bytes", 1500 * MIB + used, count)
        yield Sample("host_used_free_bytes", 1400 * MIB + used, count)
        for name, share in shares.items():
            yield Sample(f"{name}_bytes", 100 * MIB + share * used, count)
        for _ in range(count):
            yield Sample("memory_pss_bytes", 0.9 * each, count)
            yield Sample("memory_anonymous_bytes", 0.84 * each, count)
            yield Sample("memory_shmem_bytes", 0.0, count)
            yield Sample("memory_file_bytes", 0.02 * each, count)
    if START[driver] > 1:
        yield Sample("balloon_actual_bytes", 512 * MIB)
        yield Sample("balloon_unused_bytes", 402 * MIB)
    if not elsewhere and START[driver] > 1:
        yield Sample("ksm_saved_bytes", 0.3 * each * noise.gauss(1, 0.02))
        yield Sample("host_drift_bytes", 3 * MIB * noise.gauss(0, 1))


def _minimum(driver: str, start: float, noise: random.Random) -> Iterator[Sample]:
    least = (5 if START[driver] < 1 else 180 if driver in FULL else 62) * MIB
    low, high = 0.0, 512.0 * MIB
    attempts = []
    while high - low > 4 * MIB:
        middle = (low + high) / 2
        completed = middle >= least
        attempts.append((middle, completed))
        low, high = (low, middle) if completed else (middle, high)
    yield Sample(metrics.MINIMUM_MEMORY.name, high)
    for number, (limit, completed) in enumerate(attempts):
        yield Sample(metrics.MINIMUM_ATTEMPT.name, limit, number)
        yield Sample(metrics.MINIMUM_COMPLETED.name, float(completed), number)
