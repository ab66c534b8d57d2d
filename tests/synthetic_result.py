"""A realistic made-up result, the same in every process: what the statistics and report tests read.

native, container and an emulated qemu; five trials each; one failed trial with a console tail; no
cgroup figure for native; kvm absent; steps on the way to ready for container and qemu, and a first answer in http.
``synthetic_servers`` has the result with many virtual servers.
"""

from __future__ import annotations

import random
from pathlib import Path

from bench.model import Case, Event, Limits, Metric, Outcome, OutcomeKind, Sample, Step, Trial
from bench.result import AbsentDriver, DriverRecord, Header, Notice, Result, WorkloadRecord
from bench.schedule import schedule

MIB = 1024**2
DIGEST = "sha256:" + "5a" * 32
DRIVERS = ("native", "container", "qemu")
START = {"native": 0.0040, "container": 0.0121, "qemu": 3.10}
DELAY = {"native": 0.00004, "container": 0.00005, "qemu": 0.0021}
PSS = {"native": 1.1 * MIB, "container": 1.3 * MIB, "qemu": 168 * MIB}
CGROUP = {"container": 2.9 * MIB, "qemu": 214 * MIB}
STEPS = {
    "container": {"tie its life to its parent's": 0.45, "mount /proc": 0.5, "enter its root": 0.7, "run": 0.86},
    "qemu": {
        "make its disk": 0.0,
        "create the domain": 0.02,
        "hypervisor sets up the machine": 0.06,
        "let it run": 0.15,
    },
}
"""When each step begins, as a share of the start."""
TAIL = ("[    0.000000] Linux version 6.1.0-cloud", "[    1.912345] Run /init as init process", "nginx: <bad> & broken")


def _metric(name: str, title: str, unit: str, direction: str, definition: str) -> Metric:
    return Metric(name, title, unit, direction, definition)  # type: ignore[arg-type]


EVENTS = _metric(
    "events_per_second", "Prime searches", "events/s", "higher", "sysbench's count of events divided by the round."
)
MEMORY = _metric(
    "written_bytes_per_second", "Memory written", "bytes/s", "higher", "Bytes sysbench wrote divided by the round."
)
READ = _metric("read_per_second", "Random reads, 4 KiB", "ops/s", "higher", "fio's read IOPS over the round.")
WRITE = _metric("write_per_second", "Random writes, 4 KiB", "ops/s", "higher", "fio's write IOPS over the round.")
REQUESTS = _metric("requests_per_second", "Requests", "requests/s", "higher", "Answers with status 200 per second.")
LATENCY = _metric("latency_seconds", "Median latency", "seconds", "lower", "Median time from request to last byte.")

WORKLOADS = (
    WorkloadRecord("boot", "Boot", "Nothing but ready.", "none", ()),
    WorkloadRecord("cpu", "CPU", "sysbench cpu.", "payload", (EVENTS,)),
    WorkloadRecord("memory", "Memory", "sysbench memory.", "payload", (MEMORY,)),
    WorkloadRecord("disk", "Disk", "fio, 4 KiB random.", "payload", (READ, WRITE)),
    WorkloadRecord("http", "HTTP", "nginx, load from the host.", "http", (REQUESTS, LATENCY)),
)
LEVELS = {
    "events_per_second": {"native": 1000.0, "container": 998.0, "qemu": 95.0},
    "written_bytes_per_second": {"native": 8.1e9, "container": 8.05e9, "qemu": 1.2e9},
    "read_per_second": {"native": 41_000.0, "container": 38_500.0, "qemu": 6_200.0},
    "write_per_second": {"native": 17_600.0, "container": 16_300.0, "qemu": 2_900.0},
    "requests_per_second": {"native": 21_500.0, "container": 18_900.0, "qemu": 1_150.0},
    "latency_seconds": {"native": 0.00041, "container": 0.00047, "qemu": 0.0079},
}
SIZES = {
    "native": (61 * MIB, 182 * MIB, 190 * MIB),
    "container": (61 * MIB, 182 * MIB, 190 * MIB),
    "qemu": (89 * MIB, 206 * MIB, 271 * MIB),
}


def synthetic_result(
    *,
    trials: int = 5,
    seed: int = 20,
    emulated: bool = True,
    failed: tuple[tuple[str, str, int], ...] = (("http", "qemu", 2),),
    without: tuple[str, ...] = (),
) -> Result:
    """Return the result; ``failed`` names (workload, driver, block); ``without`` leaves drivers out."""
    drivers = tuple(name for name in DRIVERS if name not in without)
    cases = [Case(workload.name, driver) for workload in WORKLOADS for driver in drivers]
    slots = schedule(cases, trials, seed)
    noise = random.Random(seed)
    header = Header(
        result_id="20250102-030405-5a5a5a",
        created_at="2025-01-02T03:04:05Z",
        isomark_version="0.1.0",
        suite_name="quick",
        suite_title="Virtual server or container, quickly",
        suite_source='title = "Virtual server or container, quickly"\ntrials = 5\n',
        seed=seed,
        limits=Limits(),
        trials_per_case=trials,
        rounds=3,
        warmup_rounds=1,
        round_seconds=1.0,
        workloads=WORKLOADS,
        drivers=tuple(_driver(name, emulated) for name in drivers),
        absent=(AbsentDriver("kvm", "/dev/kvm is there, but no guest kernel boots on it", "run on real hardware"),),
        schedule=slots,
        image_reference="isomark/quick:bookworm",
        image_digest=DIGEST,
        image_compressed_bytes=61 * MIB,
        image_unpacked_bytes=182 * MIB,
        image_packages={"fio": "3.33-3", "nginx": "1.22.1-9", "sysbench": "1.0.20+ds-5"},
        identity={"architecture": "x86_64", "cpu": "AMD EPYC 7B13", "image": DIGEST},
        conditions={"governor": "unknown", "host kernel": "6.18.0", "load at start": "0.31"},
        notices=(Notice("turbo", "note", "Turbo is on, so clocks vary.", "echo 0 > /sys/devices/…/boost"),),
    )
    ran = []
    clock = 100.0
    for slot in slots:
        bad = (slot.case.workload, slot.case.driver, slot.block) in failed
        ran.append(_trial(slot, noise, clock, bad=bad))
        clock += 10
    return Result(Path("/nowhere"), header, tuple(ran))


def _driver(name: str, emulated: bool) -> DriverRecord:
    kind = {"native": "process", "container": "container", "qemu": "vm"}[name]
    description = {"engine": name, "version": "0.1.0"}
    if name == "qemu":
        description |= {
            "hypervisor": "QEMU 7.2",
            "accelerator": "tcg" if emulated else "kvm",
            "parity": "The guest's kernel is 6.1, the host's is 6.18.\nIts disk is cached by the host (writeback).",
        }
    return DriverRecord(
        name, kind, emulated and name == "qemu", description, "raw disk" if name == "qemu" else "tree", *SIZES[name]
    )  # type: ignore[arg-type]


def _trial(slot, noise: random.Random, clock: float, *, bad: bool) -> Trial:
    case = slot.case
    start = START[case.driver] * noise.uniform(0.93, 1.12) * (1.4 if case.workload == "http" else 1)
    events = [Event("spawned", clock)]
    if case.driver == "qemu":
        events += [Event("kernel", clock + 0.2 * start), Event("init", clock + 0.75 * start)]
    if bad:
        outcome = Outcome(OutcomeKind.FAILED, "silent for 60 s, never said ready", "see the console's tail", TAIL)
        return _recorded(slot, outcome, events, clock, start, (), 61.0)
    events += [Event("ready", clock + start), Event("exited", clock + start + 5)]
    samples = _idle_samples(case.driver, start, noise) if case.workload == "boot" else _round_samples(case, noise)
    if case.workload == "http":
        samples.append(Sample("first_answer_seconds", start + DELAY[case.driver] * 3))
    return _recorded(slot, Outcome(OutcomeKind.OK), events, clock, start, tuple(samples), start + 6)


def _recorded(slot, outcome: Outcome, events, clock: float, start: float, samples, wall_seconds: float) -> Trial:
    steps = [Step(name, clock + share * start) for name, share in STEPS.get(slot.case.driver, {}).items()]
    steps += [Step("first answer", clock + each.value) for each in samples if each.metric == "first_answer_seconds"]
    return Trial(
        slot.index, slot.block, slot.case, outcome, DIGEST, events=tuple(events), steps=tuple(steps), samples=samples,
        started_at="2025-01-02T03:04:05Z", wall_seconds=wall_seconds, round_seconds=4.0 if samples else 0.0,
    )  # fmt: skip


def _idle_samples(driver: str, start: float, noise: random.Random) -> list[Sample]:
    samples = [Sample("boot_seconds", start), Sample("channel_delay_seconds", _around(noise, DELAY[driver]))]
    samples.append(Sample("memory_pss_bytes", round(_around(noise, PSS[driver]))))
    if driver in CGROUP:
        samples.append(Sample("memory_cgroup_bytes", round(_around(noise, CGROUP[driver]))))
    return samples


def _round_samples(case: Case, noise: random.Random) -> list[Sample]:
    workload = next(record for record in WORKLOADS if record.name == case.workload)
    return [
        Sample(
            metric.name,
            _around(noise, LEVELS[metric.name][case.driver] * (0.9 if number == 0 else 1)),
            number,
            number == 0,
        )
        for number in range(4)
        for metric in workload.metrics
    ]


def _around(noise: random.Random, level: float) -> float:
    return level * noise.gauss(1, 0.02)
