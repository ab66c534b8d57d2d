"""More and more idle instances: real processes, containers and virtual servers, and what if one fails."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import statistics
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import usable
from synthetic_result import synthetic_result

from bench import host_memory, ksm
from bench import memory_metrics as memory
from bench.clean import clean
from bench.dialogue import Dialogue
from bench.driver import Configurable, Driver, Instance, Lab, Launch
from bench.drivers import load_driver
from bench.errors import HostError, InstanceError
from bench.footprint import Footprint, Line, footprint
from bench.journal import read_journals
from bench.metrics import MEMORY_CGROUP, MEMORY_PSS
from bench.model import Case, Image, Limits, Metric, OutcomeKind, Trial, Workload
from bench.observed import Observed
from bench.result import Slot, WorkloadRecord
from bench.trial import Aborted, Plan, conduct_trial
from bench.units import MIB
from bench.workload import find_workload
from runtimes.oci.workload_image import build_workload_image

pytestmark = pytest.mark.slow

INSTANCES = 3
PLAN = Plan(Limits(memory_bytes=256 * MIB), rounds=1, warmup_rounds=0, round_seconds=0.2, timeout_seconds=120.0)
WORKLOAD = dataclasses.replace(find_workload("density"), instances=INSTANCES)
ALONE = "Host memory in use, without other processes"
LISTS = host_memory.CPU_LISTS
GUESTS_VIEW = ("guest_used_bytes", "guest_cache_bytes", "guest_free_bytes")


class Stumbling:
    """A real ``driver`` that stumbles at its third instance, and remembers those before it."""

    def __init__(self, driver: Driver) -> None:
        self.name, self.kind = driver.name, driver.kind
        self.started: list[Instance] = []
        self._driver = driver

    def start(self, image: Image, launch: Launch) -> Instance:
        if len(self.started) == 2:
            image = self.stumble(image)
        self.started.append(self._driver.start(image, launch))
        return self.started[-1]

    def stumble(self, image: Image) -> Image:
        """Lose the image."""
        return dataclasses.replace(image, location=image.location / "gone")

    def check(self) -> None: ...
    def describe(self) -> Mapping[str, str]:
        return self._driver.describe()

    def build(self, image) -> Image:
        return self._driver.build(image)

    def preview(self, launch: Launch) -> str:
        return self._driver.preview(launch)

    def close(self) -> None: ...


class Reserved(Stumbling):
    """One whose instances claim to be on huge pages."""

    on_huge_pages = True


class Undivided(Stumbling):
    """One whose last instance shares huge pages, so that it has no proportional set size."""

    def start(self, image: Image, launch: Launch) -> Instance:
        instance = self._driver.start(image, launch)
        self.started.append(instance)
        if len(self.started) == INSTANCES:
            read = instance.memory
            instance.memory = lambda: dataclasses.replace(read(), pss_bytes=None)  # type: ignore[method-assign]
        return instance


class Interrupted(Stumbling):
    def stumble(self, image: Image) -> Image:
        """Have the user press Ctrl-C."""
        signal.raise_signal(signal.SIGINT)
        return image


class Dying(Stumbling):
    def stumble(self, image: Image) -> Image:
        """End the first instance."""
        self.started[0].kill()
        return image


@pytest.fixture(scope="module", params=["native", "container"])
def driver(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Driver]:
    with usable(request.param, lambda: load_driver(request.param, lab)) as made:
        yield made


@pytest.fixture(scope="module")
def image(driver: Driver, lab: Lab) -> Image:
    return driver.build(build_workload_image([WORKLOAD], lab.state, lab.journal, lambda _: None))


@pytest.fixture(scope="module")
def trial(driver: Driver, image: Image, lab: Lab) -> Trial:
    return conduct(driver, image, lab)


@pytest.fixture(scope="module")
def guests(lab: Lab) -> Iterator[Trial]:
    """The trial of as many direct guests, whose CPUs are emulated, with a balloon for libvirt's statistics."""
    with usable("qemu", lambda: load_driver("qemu", lab)) as qemu:
        assert isinstance(qemu, Configurable)
        ballooned = qemu.configured({"balloon": "virtio"})
        disk = ballooned.build(build_workload_image([WORKLOAD], lab.state, lab.journal, lambda _: None))
        yield conduct(ballooned, disk, lab)
        ballooned.close()


def conduct(driver: Driver, image: Image, lab: Lab, plan: Plan = PLAN, workload: Workload = WORKLOAD) -> Trial:
    return conduct_trial(Slot(3, 0, Case("density", driver.name)), workload, driver, image, plan, lab)


def values(trial: Trial, metric: str) -> list[float]:
    return [sample.value for sample in trial.samples if sample.metric == metric]


def reconciled(trial: Trial) -> Footprint:
    made = synthetic_result()
    record = WorkloadRecord("density", WORKLOAD.title, WORKLOAD.description, "density", WORKLOAD.metrics)
    header = dataclasses.replace(made.header, workloads=(record,), limits=PLAN.limits)
    return footprint(Observed(dataclasses.replace(made, header=header, trials=(trial,))), trial.case.driver)


def figure(line: Line | None) -> float:
    assert line is not None
    assert line.figure.estimate is not None, line
    return line.figure.estimate.value


def beside(found: Footprint, name: str) -> Line:
    return next(line for line in found.beside if line.name == name)


def assert_read_with_every_number(trial: Trial) -> None:
    assert trial.outcome.kind is OutcomeKind.OK, trial.outcome
    rounds = Counter((sample.metric, sample.round) for sample in trial.samples)
    for number in range(INSTANCES + 1):
        assert rounds[memory.HOST_USED.name, number] == 1
        assert rounds[memory.HOST_SLAB.name, number] == 1
        assert rounds[MEMORY_PSS.name, number] == number
        assert rounds[memory.MEMORY_ANONYMOUS.name, number] == number


def assert_adds_up(found: Footprint) -> None:
    assert found.instances == INSTANCES
    assert len(found.points) == INSTANCES + 1
    assert sum(map(figure, found.parts)) + figure(found.residue) == pytest.approx(figure(found.total), abs=64)


def test_the_memory_is_read_with_none_and_after_each_instance(trial: Trial) -> None:
    assert_read_with_every_number(trial)
    assert [event.name for event in trial.events][:2] == ["spawned", "ready"]


def test_a_process_has_its_own_memory_and_no_view_of_its_own(trial: Trial) -> None:
    assert all(0 < value < 20 * MIB for value in values(trial, memory.MEMORY_ANONYMOUS.name))
    assert not [name for name in GUESTS_VIEW if values(trial, name)]
    assert all("/proc/meminfo is the host's" in trial.missing[name] for name in GUESTS_VIEW)


def test_a_container_has_a_cgroup_at_every_reading_and_a_process_none(trial: Trial) -> None:
    expected = {"native": 0, "container": sum(range(INSTANCES + 1))}[trial.case.driver]
    assert len(values(trial, MEMORY_CGROUP.name)) == expected


def test_the_parts_of_processes_and_containers_add_up(trial: Trial) -> None:
    found = reconciled(trial)
    assert_adds_up(found)
    assert abs(figure(beside(found, ALONE))) < 32 * MIB


@pytest.mark.timeout(600)
def test_guests_are_read_like_containers_and_tell_their_own_view_too(guests: Trial) -> None:
    assert_read_with_every_number(guests)
    for parts in zip(*(values(guests, name) for name in GUESTS_VIEW), strict=True):
        assert 128 * MIB < sum(parts) < PLAN.limits.memory_bytes


def test_the_balloon_says_what_the_guest_says(guests: Trial) -> None:
    told = {key: values(guests, metric.name) for key, metric in memory.BALLOON.items()}
    assert told["actual"] == [PLAN.limits.memory_bytes] * INSTANCES
    assert all(rss > 32 * MIB for rss in told["rss"])
    total = [sum(parts) for parts in zip(*(values(guests, name) for name in GUESTS_VIEW), strict=True)]
    assert told["available"] == pytest.approx(total)


def test_a_guest_costs_the_host_about_what_its_processes_have(guests: Trial) -> None:
    found = reconciled(guests)
    assert_adds_up(found)
    anonymous = statistics.median(values(guests, memory.MEMORY_ANONYMOUS.name))
    assert anonymous > 32 * MIB
    # other processes come and go on this host meanwhile: theirs is left out, and the band is wide
    assert 0.7 * anonymous < figure(beside(found, ALONE)) < 1.5 * anonymous
    assert abs(figure(found.residue)) < 0.3 * anonymous


def test_ksm_saves_on_guests_and_is_put_back(guests: Trial, lab: Lab) -> None:
    if memory.KSM_SAVED.name in guests.missing:
        pytest.skip(guests.missing[memory.KSM_SAVED.name])
    assert figure(beside(reconciled(guests), memory.KSM_SAVED.title)) > MIB
    assert values(guests, memory.KSM_SHARED.name)[0] > 0
    mine = next(left for left in read_journals(lab.journal.path.parent) if left.owner == lab.journal.owner)
    assert "ksm" not in {entry.kind for entry in mine.entries}


def test_when_one_does_not_start_all_others_are_destroyed_and_it_is_named(
    driver: Driver, image: Image, lab: Lab
) -> None:
    stumbling = Stumbling(driver)
    failed = conduct(stumbling, image, lab)
    assert failed.outcome.kind is OutcomeKind.FAILED
    assert failed.outcome.reason.startswith("instance 3 of 3: ")
    assert failed.samples == ()
    assert len(stumbling.started) == 2
    assert_gone(stumbling, lab)


def test_when_one_dies_among_them_it_is_named(driver: Driver, image: Image, lab: Lab) -> None:
    dying = Dying(driver)
    failed = conduct(dying, image, lab)
    assert failed.outcome.reason.startswith("instance 1 of 3: the instance is gone")
    assert_gone(dying, lab)


def test_ctrl_c_destroys_them_all(driver: Driver, image: Image, lab: Lab) -> None:
    interrupted = Interrupted(driver)
    with pytest.raises(Aborted):
        conduct(interrupted, image, lab)
    assert len(interrupted.started) == 2
    assert_gone(interrupted, lab)


def test_more_than_fits_is_refused_before_anything_starts(driver: Driver, image: Image, lab: Lab) -> None:
    granted = host_memory.available_bytes() // 2
    untouched = Stumbling(driver)
    failed = conduct(untouched, image, lab, dataclasses.replace(PLAN, limits=Limits(memory_bytes=granted)))
    assert failed.outcome.kind is OutcomeKind.FAILED
    assert "3 instances of" in failed.outcome.reason
    assert "the host has" in failed.outcome.reason
    assert "limits.memory" in failed.outcome.hint
    assert untouched.started == []


def test_guests_on_huge_pages_need_no_ordinary_memory(driver: Driver, image: Image, lab: Lab) -> None:
    granted = host_memory.available_bytes() // 2
    reserved = Reserved(driver)
    conduct(reserved, image, lab, dataclasses.replace(PLAN, limits=Limits(memory_bytes=granted)))
    assert reserved.started != []


def test_what_ksm_saved_is_missing_where_an_instance_has_no_proportional_set_size(
    driver: Driver, image: Image, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ksm, "why_untouched", lambda: "")
    monkeypatch.setattr(ksm, "merging", lambda _: nullcontext())
    monkeypatch.setattr(ksm, "await_scans", lambda: "")
    undivided = conduct(Undivided(driver), image, lab)
    assert undivided.outcome.kind is OutcomeKind.OK, undivided.outcome
    assert values(undivided, memory.KSM_SAVED.name) == []
    assert "huge pages" in undivided.missing[memory.KSM_SAVED.name]
    assert len(values(undivided, memory.KSM_HOST_SAVED.name)) == 1


def test_a_guest_tells_every_figure_that_its_workload_declares_and_no_other(guests: Trial) -> None:
    assert {sample.metric for sample in guests.samples if sample.metric.startswith("guest_")} == set(GUESTS_VIEW)
    assert {metric.name for metric in WORKLOAD.metrics} == set(GUESTS_VIEW)


def test_the_payloads_view_is_that_of_its_kernel(driver: Driver, image: Image, lab: Lab) -> None:
    lease = lab.network.lease() if lab.network is not None and driver.kind == "container" else None
    launch = Launch(f"iso-{lab.journal.owner.id}-own", WORKLOAD.command, {}, PLAN.limits, lease)
    with driver.start(image, launch) as instance:
        dialogue = Dialogue(instance, 30)
        dialogue.ready()
        figures, _ = dialogue.round(1, 1.0)
    assert sum(figures[name] for name in GUESTS_VIEW) == host_memory.read_meminfo()["MemTotal"]


@pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
def test_after_kill_9_clean_removes_every_instance(tmp_path: Path, lab: Lab) -> None:
    """The run has a journal of its own, so that only what it left is cleaned."""
    script = f"""
        import dataclasses, signal
        from pathlib import Path
        import test_density as here
        from bench.driver import Lab
        from bench.drivers import load_driver
        from bench.journal import Journal
        from bench.state import state_directory
        from runtimes.oci.workload_image import build_workload_image

        class Killed(here.Stumbling):
            def stumble(self, image):
                signal.raise_signal(signal.SIGKILL)

        scratch = Path({str(tmp_path / "scratch")!r})
        scratch.mkdir()
        with Journal(Path({str(tmp_path / "owned")!r})) as journal:
            lab = Lab(state_directory(), scratch, journal, None)
            driver = load_driver("container", lab)
            driver.check()
            image = driver.build(build_workload_image([here.WORKLOAD], lab.state, journal, lambda _: None))
            here.conduct(Killed(driver), image, lab)
    """
    path = os.pathsep.join(["tests/bench", "tests", "."])
    environment = {**os.environ, "PYTHONPATH": path}
    root = Path(__file__).parent.parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, cwd=root, capture_output=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    removals = clean(tmp_path / "owned")
    assert removals
    assert [removal for removal in removals if removal.fault] == []
    assert len([removal for removal in removals if removal.entry.kind == "directory"]) >= 2
    assert not list((tmp_path / "scratch").rglob("*"))
    owner = removals[0].owner
    assert not [pid for pid in os.listdir("/proc") if pid.isdecimal() and _carries(pid, f"ISOMARK_OWNER={owner}")]


def test_a_kernel_that_does_not_tell_what_is_available_is_refused() -> None:
    with pytest.raises(HostError, match="MemAvailable"):
        host_memory.median_figures([{"MemTotal": 1, "MemFree": 1, "SwapTotal": 0, "SwapFree": 0, LISTS: 0}])


def test_what_an_old_kernel_does_not_tell_is_missing() -> None:
    meminfo = {name: size for name, size in host_memory.read_meminfo().items() if name not in {"Percpu", "Shmem"}}
    found = host_memory.median_figures([{**meminfo, LISTS: 0}])
    assert memory.HOST_PERCPU not in found
    assert memory.HOST_PAGE_CACHE not in found
    assert memory.HOST_USED in found


def test_the_figures_are_those_of_one_reading_the_median_one() -> None:
    meminfo = {**host_memory.read_meminfo(), LISTS: 0}
    readings = [{**meminfo, "MemAvailable": size, "AnonPages": size} for size in (10 * MIB, 5000 * MIB, 20 * MIB)]
    found = host_memory.median_figures(readings)  # by what is in use and not anonymous
    assert found[memory.HOST_ANONYMOUS] == 20 * MIB
    assert found[memory.HOST_USED] == found[memory.HOST_SWAPPED] + meminfo["MemTotal"] - 20 * MIB


def test_guests_on_huge_pages_are_in_use_and_a_part_of_it_and_free_ones_are_neither(tmp_path: Path) -> None:
    text = Path("/proc/meminfo").read_text()
    plain = re.sub(r"^(Huge|MemAvailable).*\n", "", text, flags=re.MULTILINE)
    pool = "MemAvailable: {} kB\nHugePages_Total: 300\nHugePages_Free: {}\nHugepagesize: 2048 kB\nHugetlb: 614400 kB\n"

    def figures(available: int, free: int) -> Mapping[Metric, float]:
        (tmp_path / "meminfo").write_text(plain + pool.format(available, free))
        return host_memory.median_figures([{**host_memory.read_meminfo(tmp_path / "meminfo"), LISTS: 0}])

    before, after = figures(700000, 300), figures(700000, 172)
    assert (before[memory.HOST_HUGE_PAGES], after[memory.HOST_HUGE_PAGES]) == (0, 256 * MIB)
    assert after[memory.HOST_USED] - before[memory.HOST_USED] == 256 * MIB
    assert after[memory.HOST_USED_FREE] - before[memory.HOST_USED_FREE] == 256 * MIB
    # reserving the pages beforehand takes them from what is available, and uses none of them
    assert before[memory.HOST_USED] == figures(700000 + 614400, 0)[memory.HOST_USED]


def test_pages_that_a_cpu_keeps_in_stock_are_not_in_use(tmp_path: Path) -> None:
    zones = "Node 0, zone {}\n  pages free 100\n  pagesets\n    cpu: 0\n              count:    {}\n"
    (tmp_path / "zoneinfo").write_text(zones.format("DMA", 3) + zones.format("Normal", 40))
    stock = host_memory.cpu_lists_bytes(tmp_path / "zoneinfo")
    assert stock == 43 * os.sysconf("SC_PAGE_SIZE")
    meminfo = host_memory.read_meminfo()
    without, with_it = (host_memory.median_figures([{**meminfo, LISTS: size}]) for size in (0, stock))
    assert without[memory.HOST_USED] - with_it[memory.HOST_USED] == stock


def test_what_this_kernel_cannot_name_stays_the_same_while_memory_comes_and_goes() -> None:
    """Some 300 MiB are touched and freed, and what is freed goes to its CPU's list first; others may spoil a try."""
    parts = (memory.HOST_ANONYMOUS, memory.HOST_SHMEM, memory.HOST_PAGE_TABLES, memory.HOST_KERNEL_STACKS)
    parts += (memory.HOST_HUGE_PAGES, memory.HOST_SLAB, memory.HOST_PERCPU, memory.HOST_VMALLOC, memory.HOST_SWAPPED)

    def unnamed() -> float:
        found = host_memory.read_host(0.02)
        return found[memory.HOST_USED] - sum(found[part] for part in parts)

    def moved() -> float:
        before = unnamed()
        touched = bytearray(os.urandom(MIB)) * 300
        during = unnamed()
        del touched
        return max(abs(during - before), abs(unnamed() - before))

    assert min(moved() for _ in range(3)) < 30 * MIB


def assert_gone(driver: Stumbling, lab: Lab) -> None:
    for instance in driver.started:
        with pytest.raises(InstanceError):
            instance.memory()
    assert not [path for path in lab.scratch.rglob("*") if path.is_file()]


def _carries(pid: str, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
