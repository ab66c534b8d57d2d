"""The search for the least memory: the bisection alone, then with real instances."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
from conftest import usable
from hypothesis import given
from hypothesis import strategies as st

from bench import metrics, minimum
from bench.bisection import MAX_ATTEMPTS, REPEATS, smallest
from bench.driver import Driver, Instance, Lab, Launch
from bench.drivers import load_driver
from bench.errors import HostError, InstanceError
from bench.minimum import FINEST_BYTES, Attempts, candidates
from bench.model import Case, Image, Kind, Limits, OutcomeKind, Trial, WorkloadImage
from bench.result import Slot
from bench.setting import Plan, Record, Setting
from bench.suite import find_suite
from bench.trial import conduct_trial
from bench.units import MIB
from bench.workload import find_workload
from runtimes.oci.workload_image import build_workload_image

PLAN = Plan(Limits(memory_bytes=64 * MIB), rounds=1, warmup_rounds=0, round_seconds=1.0, timeout_seconds=60.0)
BALLAST_BYTES = 20 * MIB
HANG_SECONDS = 60.0
LIMITS = st.lists(st.integers(1, 10**9), min_size=1, max_size=300, unique=True).map(sorted)


# --- the bisection


@given(LIMITS, st.data())
def test_the_smallest_that_suffices_is_found_in_few_attempts(limits: list[int], data: st.DataObject) -> None:
    needed = data.draw(st.sampled_from(limits))
    attempts: list[int] = []

    def completes(limit: int) -> bool:
        attempts.append(limit)
        return limit >= needed

    found = smallest(limits, completes)
    assert (found.limit, found.unsteady) == (needed, 0)
    assert len(attempts) <= math.ceil(math.log2(len(limits) + 1)) + 1 + REPEATS
    assert attempts[0] == limits[-1], "that nothing is wrong but the limit is shown first"
    assert attempts.count(needed) >= REPEATS


@given(LIMITS, st.data())
def test_where_attempts_contradict_each_other_the_figure_is_among_them_and_says_so(
    limits: list[int], data: st.DataObject
) -> None:
    """Between the limits ``low`` and ``high`` chance decides; below nothing completes, above everything does."""
    low, high = sorted(data.draw(st.tuples(*[st.integers(0, len(limits) - 1)] * 2)))
    told: dict[int, list[bool]] = {}

    def completes(limit: int) -> bool:
        place = limits.index(limit)
        ended = data.draw(st.booleans()) if low <= place < high else place >= high
        told.setdefault(place, []).append(ended)
        return ended

    try:
        found = smallest(limits, completes)
    except InstanceError:  # chance went against it for too long
        assert sum(map(len, told.values())) == MAX_ATTEMPTS
        return
    suffices = {place: 2 * sum(ended) > len(ended) for place, ended in told.items()}
    place = limits.index(found.limit)
    assert low <= place <= high
    assert suffices[place]
    assert len(told[place]) >= REPEATS
    assert all(suffices[larger] for larger in told if larger > place)
    assert place == 0 or not suffices[place - 1], "the next smaller one was attempted and does not suffice"
    failed = [at for at, ended in told.items() if not all(ended)]
    completed = [at for at, ended in told.items() if any(ended)]
    assert (found.unsteady > 0) == (max(failed, default=-1) >= min(completed))


def test_a_limit_that_completes_once_and_then_no_more_does_not_suffice() -> None:
    answers = {4: [True], 2: [True, False, False], 1: [False, False], 3: [True, True]}
    found = smallest([1, 2, 3, 4], lambda limit: answers[limit].pop(0))
    assert (found.limit, found.unsteady) == (3, 1)


def test_the_largest_that_mostly_fails_is_an_error() -> None:
    answers = [True, False, False, False, False]
    with pytest.raises(InstanceError, match="mostly fails with a limit of 2 bytes"):
        smallest([1, 2], lambda limit: answers.pop(0) if limit == 2 else False)


@given(st.integers(1, 2**40))
def test_the_candidates_are_as_far_apart_as_the_definition_says(limit_bytes: int) -> None:
    limits = candidates(limit_bytes)
    assert limits[-1] == limit_bytes
    for lower, higher in zip((0, *limits), limits, strict=False):
        assert 0 < higher - lower <= max(FINEST_BYTES, higher / 32)
        if higher < limit_bytes:
            assert higher % FINEST_BYTES == 0
            assert higher < 32 * MIB or higher % MIB == 0
        if 16 * MIB < higher < limit_bytes:
            assert higher / 65 <= higher - lower


# --- real instances


class Changed:
    """The real ``driver``, whose launches go through ``change`` first."""

    def __init__(self, driver: Driver, change: Callable[[Launch], Launch]) -> None:
        self.name = driver.name
        self.kind: Kind = driver.kind
        self._driver = driver
        self._change = change

    def check(self) -> None:
        self._driver.check()

    def describe(self) -> Mapping[str, str]:
        return self._driver.describe()

    def build(self, image: WorkloadImage) -> Image:
        return self._driver.build(image)

    def start(self, image: Image, launch: Launch) -> Instance:
        return self._driver.start(image, self._change(launch))

    def preview(self, launch: Launch) -> str:
        return self._driver.preview(launch)

    def close(self) -> None:
        self._driver.close()


def shell(launch: Launch, script: str) -> Launch:
    return dataclasses.replace(launch, command=("/bin/sh", "-c", f"{script}; exec {launch.command[0]}"))


@pytest.fixture(scope="module")
def workload_image(lab: Lab) -> WorkloadImage:
    workloads = [find_workload(name) for name in (*find_suite("quick").workloads, "minimum")]
    return build_workload_image(workloads, lab.state, lab.journal, lambda _: None)


@pytest.fixture(scope="module")
def container(lab: Lab) -> Iterator[Driver]:
    with usable("container", lambda: load_driver("container", lab)) as made:
        yield made


@pytest.fixture(scope="module")
def image(container: Driver, workload_image: WorkloadImage) -> Image:
    return container.build(workload_image)


def setting(driver: Driver, image: Image, lab: Lab, plan: Plan = PLAN) -> Setting:
    return Setting(Slot(7, 1, Case("minimum", driver.name)), find_workload("minimum"), driver, image, plan, lab)


def conduct(driver: Driver, image: Image, lab: Lab, plan: Plan = PLAN) -> Trial:
    slot = Slot(7, 1, Case("minimum", driver.name))
    return conduct_trial(slot, find_workload("minimum"), driver, image, plan, lab)


def value(trial: Trial, metric: str) -> float:
    return next(sample.value for sample in trial.samples if sample.metric == metric and sample.round is None)


def attempted(trial: Trial) -> list[tuple[float, bool]]:
    def by_round(metric: str) -> Sequence[float]:
        samples = [sample for sample in trial.samples if sample.metric == metric]
        assert [sample.round for sample in samples] == list(range(len(samples)))
        return [sample.value for sample in samples]

    limits = by_round(metrics.MINIMUM_ATTEMPT.name)
    return [(limit, ended == 1) for limit, ended in zip(limits, by_round(metrics.MINIMUM_COMPLETED.name), strict=True)]


def require_sound(trial: Trial, plan: Plan) -> float:
    """Check ``trial``'s figure against its attempts and return it."""
    assert trial.outcome.kind is OutcomeKind.OK, trial.outcome
    figure = value(trial, metrics.MINIMUM_MEMORY.name)
    attempts = attempted(trial)
    assert attempts[0] == (plan.limits.memory_bytes, True)
    assert attempts.count((figure, True)) >= REPEATS
    limits = candidates(plan.limits.memory_bytes)
    below = limits[limits.index(int(figure)) - 1]
    assert attempts.count((below, False)) >= REPEATS
    assert {"spawned", "ready", "exited"} <= {event.name for event in trial.events}
    return figure


@pytest.mark.slow
def test_the_minimum_of_a_workload_that_holds_memory_is_that_and_a_little(
    container: Driver, image: Image, lab: Lab
) -> None:
    ballast = f"head -c {BALLAST_BYTES} /dev/zero >/dev/ballast || exit 1"  # a tmpfs, hence memory
    figure = require_sound(conduct(Changed(container, lambda launch: shell(launch, ballast)), image, lab), PLAN)
    assert BALLAST_BYTES < figure < BALLAST_BYTES + 8 * MIB
    assert list(lab.scratch.iterdir()) == []


@pytest.mark.slow
def test_a_bare_process_has_no_minimum_and_says_why(workload_image: WorkloadImage, lab: Lab) -> None:
    with usable("native", lambda: load_driver("native", lab)) as native:
        trial = conduct(native, native.build(workload_image), lab)
    assert trial.outcome.kind is OutcomeKind.OK
    assert trial.samples == ()
    assert "no limit on memory" in trial.missing[metrics.MINIMUM_MEMORY.name]


@pytest.mark.slow
def test_a_workload_that_does_not_complete_with_the_suites_limit_is_a_failed_trial(
    container: Driver, image: Image, lab: Lab
) -> None:
    plan = dataclasses.replace(PLAN, limits=Limits(memory_bytes=8 * MIB))
    greedy = on_little("x=$(head -c 64m /dev/zero | tr '\\0' x)")  # with one too small to start it may crawl
    trial = conduct(Changed(container, greedy), image, lab, plan)
    assert trial.outcome.kind is OutcomeKind.FAILED
    assert trial.samples == ()
    assert "out of memory" in "\n".join(trial.outcome.tail)


def on_little(little: str) -> Callable[[Launch], Launch]:
    """Run the script ``little`` before the payload where it is granted less than all."""
    return lambda launch: launch if launch.limits == PLAN.limits else shell(launch, little)


@pytest.mark.slow
@pytest.mark.parametrize(
    "little",
    [
        pytest.param("sleep 1000", id="hangs"),
        # the quota of one CPU is shared by all that it runs
        pytest.param("for i in $(seq 40); do while :; do :; done & done", id="crawls"),
        pytest.param("exit 0", id="ends"),
        pytest.param("echo isomark error no memory; exit 1", id="gives up"),
    ],
)
def test_what_hangs_crawls_or_ends_does_not_complete(
    little: str, container: Driver, image: Image, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minimum, "MARGIN_SECONDS", 2.0)
    record = Record()
    attempts = Attempts(setting(Changed(container, on_little(little)), image, lab), record)
    assert attempts.completes(PLAN.limits.memory_bytes)
    begun = time.monotonic()
    assert not attempts.completes(32 * MIB)
    assert time.monotonic() - begun < HANG_SECONDS
    assert [sample.value for sample in record.samples if sample.metric == metrics.MINIMUM_COMPLETED.name] == [1, 0]


@pytest.mark.slow
def test_a_start_that_only_a_small_limit_is_refused_does_not_complete(
    container: Driver, image: Image, lab: Lab
) -> None:
    def refuse(launch: Launch) -> Launch:
        if launch.limits.memory_bytes < 32 * MIB:
            raise InstanceError("the kernel does not fit")
        return launch

    trial = conduct(Changed(container, refuse), image, lab)
    assert require_sound(trial, PLAN) == 32 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("error", [InstanceError("libvirt is gone"), HostError("no descriptor left")])
def test_a_host_that_refuses_every_start_is_no_verdict_but_a_failed_trial(
    error: InstanceError | HostError, container: Driver, image: Image, lab: Lab
) -> None:
    started: list[Launch] = []

    def refuse(launch: Launch) -> Launch:
        started.append(launch)
        if len(started) > 2:
            raise error
        return launch

    trial = conduct(Changed(container, refuse), image, lab)
    assert (trial.outcome.kind, trial.outcome.reason) == (OutcomeKind.FAILED, error.message)
    assert trial.samples == ()


@pytest.mark.slow
@pytest.mark.full  # about twelve virtual servers
@pytest.mark.timeout(900)
def test_a_virtual_server_needs_its_kernel_on_top_of_the_workload(
    container: Driver, workload_image: WorkloadImage, lab: Lab
) -> None:
    plan = dataclasses.replace(PLAN, limits=Limits(memory_bytes=256 * MIB))
    with usable("qemu", lambda: load_driver("qemu", lab)) as qemu:
        machine = require_sound(conduct(qemu, qemu.build(workload_image), lab, plan), plan)
    alone = require_sound(conduct(container, container.build(workload_image), lab, plan), plan)
    assert alone + 16 * MIB < machine < 256 * MIB
