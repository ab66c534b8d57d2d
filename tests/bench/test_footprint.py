"""The reconciled memory of a driver's instances, from results with known slopes and known noise."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_result import DIGEST, synthetic_result

from bench import memory_metrics as memory
from bench.cautions import cautions
from bench.footprint import GUESTS_VIEW, Footprint, Line, footprint
from bench.metrics import MEMORY_CGROUP, MEMORY_HYPERVISOR, MEMORY_PSS
from bench.model import Case, Metric, Outcome, OutcomeKind, Sample, Trial
from bench.observed import Observed
from bench.result import WorkloadRecord
from bench.workload import find_workload

MIB = 1024**2
INSTANCES = 4
ANONYMOUS = 90 * MIB
SHMEM = 3 * MIB
FILE = 7 * MIB
SLAB = 2 * MIB
STACKS = 0.25 * MIB
TABLES = 1 * MIB
UNKNOWN = 1.5 * MIB
EACH = {memory.MEMORY_ANONYMOUS: ANONYMOUS, memory.MEMORY_SHMEM: SHMEM, memory.MEMORY_FILE: FILE,
        MEMORY_PSS: ANONYMOUS + SHMEM + FILE}  # fmt: skip
BASE = {
    memory.HOST_SWAPPED: 0,
    memory.HOST_HUGE_PAGES: 64 * MIB,
    memory.HOST_PERCPU: 3 * MIB,
    memory.HOST_VMALLOC: 20 * MIB,
    memory.HOST_USED_FREE: 1900 * MIB,
    memory.HOST_PAGE_CACHE: 800 * MIB,
    memory.HOST_RECLAIMABLE: 200 * MIB,
}

Noise = Callable[[int], float]
"""Bytes of other processes' memory with so many instances."""


def quiet(_count: int) -> float:
    return 0.0


def density_trial(
    index: int, *, driver: str = "qemu", others: Noise = quiet, without: tuple[Metric, ...] = ()
) -> Trial:
    """A trial on a host where every instance costs what the constants say, and ``others`` do what they like."""
    base = index * 100 * MIB  # no two trials begin alike
    samples: list[Sample] = []
    for count in range(INSTANCES + 1):
        host = {
            memory.HOST_ANONYMOUS: base + count * ANONYMOUS + others(count),
            memory.HOST_SHMEM: count * SHMEM,
            memory.HOST_SLAB: 50 * MIB + count * SLAB,
            memory.HOST_KERNEL_STACKS: 2 * MIB + count * STACKS,
            memory.HOST_PAGE_TABLES: count * TABLES,
            **BASE,
        }
        used = base + count * (ANONYMOUS + SHMEM + SLAB + STACKS + TABLES + UNKNOWN) + others(count)
        figures = [(memory.HOST_USED, used), *host.items()]
        figures += [(metric, value) for metric, value in EACH.items() for _ in range(count)]
        samples += [Sample(metric.name, value, count) for metric, value in figures if metric not in without]
    samples += [Sample(memory.KSM_SAVED.name, 40 * MIB, INSTANCES), Sample(memory.HOST_DRIFT.name, 0.5 * MIB)]
    return Trial(index, index, Case("density", driver), Outcome(OutcomeKind.OK), DIGEST, samples=tuple(samples))


def observed(*trials: Trial, workload: str = "density") -> Observed:
    made = synthetic_result()
    known = find_workload("density")
    record = WorkloadRecord(workload, known.title, known.description, known.load, known.metrics)
    header = replace(made.header, workloads=(*made.header.workloads, record))
    return Observed(replace(made, header=header, trials=trials))


def value(line: Line | None) -> float:
    assert line is not None
    assert line.figure.estimate is not None, line
    return line.figure.estimate.value


def line(found: Footprint, name: str) -> Line:
    return next(one for one in (*found.parts, *found.beside) if one.name == name)


def test_every_part_of_a_quiet_host_is_found_and_what_is_left_is_the_residue() -> None:
    found = footprint(observed(*map(density_trial, range(3))), "qemu")
    assert (found.instances, found.trials, found.missing) == (INSTANCES, 3, "")
    assert value(found.total) == pytest.approx(ANONYMOUS + SHMEM + SLAB + STACKS + TABLES + UNKNOWN)
    assert value(line(found, memory.MEMORY_ANONYMOUS.title)) == pytest.approx(ANONYMOUS)
    assert value(line(found, memory.MEMORY_SHMEM.title)) == pytest.approx(SHMEM)
    assert value(line(found, memory.HOST_SLAB.title)) == pytest.approx(SLAB)
    assert value(line(found, memory.HOST_KERNEL_STACKS.title)) == pytest.approx(STACKS)
    assert value(line(found, memory.HOST_PAGE_TABLES.title)) == pytest.approx(TABLES)
    assert value(line(found, memory.HOST_PERCPU.title)) == pytest.approx(0, abs=1)
    assert value(found.residue) == pytest.approx(UNKNOWN)


def test_mapped_files_stand_beside_the_sum_because_the_host_can_drop_them() -> None:
    found = footprint(observed(density_trial(0)), "qemu")
    assert memory.MEMORY_FILE.title not in [part.name for part in found.parts]
    assert value(line(found, memory.MEMORY_FILE.title)) == pytest.approx(FILE)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(-500, 500), min_size=INSTANCES + 1, max_size=INSTANCES + 1), min_size=1, max_size=4),
)
def test_parts_and_residue_add_up_to_the_total_whatever_others_do(noise: list[list[float]]) -> None:
    trials = [density_trial(place, others=lambda count, row=row: row[count] * MIB) for place, row in enumerate(noise)]
    found = footprint(observed(*trials), "qemu")
    assert sum(map(value, found.parts)) + value(found.residue) == pytest.approx(value(found.total), abs=64)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-500, 500), min_size=INSTANCES + 1, max_size=INSTANCES + 1))
def test_what_other_processes_do_is_a_line_of_its_own_and_no_residue(noise: list[float]) -> None:
    found = footprint(observed(density_trial(0, others=lambda count: noise[count] * MIB)), "qemu")
    assert value(found.residue) == pytest.approx(UNKNOWN, abs=64)
    alone = value(line(found, "Host memory in use, without other processes"))
    assert alone == pytest.approx(ANONYMOUS + SHMEM + SLAB + STACKS + TABLES + UNKNOWN, abs=64)
    assert value(line(found, "Anonymous memory of other processes")) == pytest.approx(
        value(found.total) - alone, abs=64
    )


def test_noise_widens_the_interval_and_the_truth_is_mostly_inside_it() -> None:
    truth = ANONYMOUS + SHMEM + SLAB + STACKS + TABLES + UNKNOWN
    inside = 0
    for seed in range(60):
        dice = random.Random(seed)
        trials = [density_trial(place, others=lambda _, dice=dice: dice.gauss(0, 30 * MIB)) for place in range(3)]
        total = footprint(observed(*trials), "qemu").total
        assert total is not None
        assert total.figure.estimate is not None
        assert total.figure.estimate.low is not None
        assert total.figure.estimate.high is not None
        inside += total.figure.estimate.low <= truth <= total.figure.estimate.high
    assert 52 <= inside <= 60
    quiet_total = footprint(observed(density_trial(0), density_trial(1)), "qemu").total
    assert quiet_total is not None
    assert quiet_total.figure.estimate is not None
    assert quiet_total.figure.estimate.low == pytest.approx(truth)


def test_a_single_trial_has_no_interval() -> None:
    found = footprint(observed(density_trial(0)), "qemu")
    for one in (found.total, found.residue):
        assert one is not None
        assert one.figure.estimate is not None
        assert (one.figure.estimate.low, one.figure.estimate.high, one.figure.estimate.trials) == (None, None, 1)


@pytest.mark.parametrize(
    ("freed", "warned"),
    [((0,), False), ((200,), True), ((0, 0), False), ((90, -90), True), ((200, 200), True)],
    ids=["one quiet", "one that shrank", "two quiet", "two apart", "two that shrank"],
)
def test_a_host_that_did_not_grow_with_its_instances_is_a_caution(freed: tuple[int, ...], warned: bool) -> None:
    """In each trial others free so many MiB for each instance that is started."""
    trials = [density_trial(place, others=lambda n, each=each: -n * each * MIB) for place, each in enumerate(freed)]
    seen = observed(*trials)
    found = cautions(replace(synthetic_result(), trials=()), seen, [footprint(seen, "qemu")])
    assert ["did not grow" in one.message for one in found if one.subject == "memory"] == [True] * warned


def test_a_part_that_the_kernel_does_not_tell_is_missing_and_left_in_the_residue() -> None:
    found = footprint(observed(density_trial(0, without=(memory.HOST_SLAB,))), "qemu")
    assert line(found, memory.HOST_SLAB.title).figure.missing == "its trials did not record this metric"
    assert value(found.residue) == pytest.approx(UNKNOWN + SLAB)


def test_a_part_that_one_trial_lacks_is_in_no_sum() -> None:
    found = footprint(observed(density_trial(0), density_trial(1, without=(memory.HOST_SLAB,))), "qemu")
    assert line(found, memory.HOST_SLAB.title).figure.estimate is None
    assert value(found.residue) == pytest.approx(UNKNOWN + SLAB)


def test_an_instance_without_a_figure_makes_its_sum_missing() -> None:
    trial = density_trial(0)
    last = max(place for place, sample in enumerate(trial.samples) if sample.metric == memory.MEMORY_ANONYMOUS.name)
    gap = replace(trial, samples=(*trial.samples[:last], *trial.samples[last + 1 :]))
    assert line(footprint(observed(gap), "qemu"), memory.MEMORY_ANONYMOUS.title).figure.estimate is None


def test_why_ksm_was_not_tried_is_told() -> None:
    trial = density_trial(0)
    bare = tuple(sample for sample in trial.samples if sample.metric != memory.KSM_SAVED.name)
    trial = replace(trial, samples=bare, missing={memory.KSM_SAVED.name: "KSM runs already, so there is no before"})
    found = line(footprint(observed(trial), "qemu"), memory.KSM_SAVED.title)
    assert found.figure.missing == "KSM runs already, so there is no before"


def test_what_nobody_could_have_told_has_no_line() -> None:
    found = footprint(observed(density_trial(0)), "qemu")
    assert not [one for one in found.beside if one.name.startswith("Balloon")]
    assert value(line(found, memory.KSM_SAVED.title)) == 40 * MIB


def test_the_points_are_above_each_trials_own_base() -> None:
    found = footprint(observed(density_trial(0), density_trial(2)), "qemu")
    assert [(point.trial, point.instances) for point in found.points] == [(t, n) for t in (0, 2) for n in range(5)]
    assert {point.above_base_bytes for point in found.points if point.instances == 0} == {0.0}


def test_a_host_elsewhere_is_what_its_hypervisor_tells() -> None:
    samples = [Sample(memory.HOST_TOLD.name, (300 + 260 * count) * MIB, count) for count in range(4)]
    samples += [Sample(MEMORY_HYPERVISOR.name, 256 * MIB, count) for count in range(4) for _ in range(count)]
    trial = Trial(0, 0, Case("density", "xen"), Outcome(OutcomeKind.OK), DIGEST, samples=tuple(samples))
    found = footprint(observed(trial), "xen")
    assert value(found.total) == pytest.approx(260 * MIB)
    assert [value(part) for part in found.parts] == [pytest.approx(256 * MIB)]
    assert value(found.residue) == pytest.approx(4 * MIB)


def test_what_the_guests_kernel_kept_is_what_it_does_not_tell_of() -> None:
    trial = density_trial(0)
    view = zip(GUESTS_VIEW, (30 * MIB, 5 * MIB, 400 * MIB), strict=True)
    told = [Sample(name, size, INSTANCES) for name, size in view for _ in range(INSTANCES)]
    found = footprint(observed(replace(trial, samples=(*trial.samples, *told))), "qemu")
    assert value(line(found, "Guest's own view: kept by its kernel at boot")) == (512 - 435) * MIB


def test_a_failed_trial_has_no_footprint_but_its_reason() -> None:
    failed = replace(density_trial(0), outcome=Outcome(OutcomeKind.FAILED, "instance 3 of 4: it hung"), samples=())
    found = footprint(observed(failed), "qemu")
    assert found.missing == "its only trial failed: instance 3 of 4: it hung"
    assert (found.total, found.parts, found.beside) == (None, (), ())


def test_a_suite_without_density_says_so() -> None:
    assert footprint(Observed(synthetic_result()), "qemu").missing == "the suite has no workload that counts instances"


def test_every_line_names_metrics_that_have_a_definition() -> None:
    known = {metric.name for metric in (*memory.DENSITY, MEMORY_PSS, MEMORY_CGROUP, MEMORY_HYPERVISOR)}
    known |= {metric.name for metric in find_workload("density").metrics}
    found = footprint(observed(density_trial(0)), "qemu")
    assert {name for one in (*found.parts, *found.beside) for name in one.metrics} <= known
    assert all(one.definition for one in (*found.parts, *found.beside))
