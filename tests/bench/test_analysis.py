"""From a result to what its report shows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from synthetic_result import DIGEST, synthetic_result
from synthetic_servers import servers_result

from bench import metrics
from bench.analysis import Analysis, Row, analyse
from bench.model import Case, Metric, Outcome, OutcomeKind, Sample, Trial
from bench.observed import Observed, trial_values
from bench.result import Result


@cache
def _servers() -> Analysis:
    return analyse(servers_result())


def _row(rows: tuple[Row, ...], metric: str) -> Row:
    return next(row for row in rows if row.metric.name == metric)


def _cell(analysis: Analysis, metric: str, driver: str):
    return next(cell for cell in _row(analysis.rows, metric).cells if cell.driver == driver)


def _without(result: Result, **case: str) -> Result:
    kept = [trial for trial in result.trials if any(getattr(trial.case, key) != name for key, name in case.items())]
    return replace(result, trials=tuple(kept))


def _subjects(result: Result) -> set[str]:
    return {caution.subject for caution in analyse(result).cautions}


def test_a_trial_counts_once_with_the_median_of_its_rounds_and_without_its_warm_up() -> None:
    samples = (Sample("x", 1000, 0, True), Sample("x", 5, 1), Sample("x", 7, 2), Sample("x", 6, 3), Sample("y", 2))
    trial = Trial(0, 0, Case("cpu", "native"), Outcome(OutcomeKind.OK), DIGEST, samples=samples)
    assert trial_values(trial) == {"x": 6, "y": 2}


def test_warm_up_rounds_are_in_no_figure_and_in_the_samples() -> None:
    analysis = analyse(synthetic_result())
    warm = [row for row in analysis.samples if row.warmup]
    assert len(warm) == sum(
        len(trial.samples) // 4 for trial in synthetic_result().trials if trial.case.workload != "boot"
    )
    assert {row.round for row in warm} == {0}


def test_a_failed_trial_is_a_reason_and_never_a_number() -> None:
    analysis = analyse(synthetic_result())
    cell = _cell(analysis, "requests_per_second", "qemu")
    assert cell.figure.estimate is not None
    assert cell.figure.estimate.trials == 4
    assert [failure.case for failure in analysis.failures] == [Case("http", "qemu")]
    assert analysis.failures[0].outcome.tail
    assert [row.value for row in analysis.samples if row.trial == analysis.failures[0].trial] == [None]


def test_samples_of_a_trial_that_failed_are_in_no_figure() -> None:
    result = synthetic_result()
    spoiled = tuple(
        replace(trial, outcome=Outcome(OutcomeKind.FAILED, "late"), samples=(Sample("events_per_second", 1e12),))
        if trial.case == Case("cpu", "native") and trial.block == 0
        else trial
        for trial in result.trials
    )
    found = _cell(analyse(replace(result, trials=spoiled)), "events_per_second", "native").figure.estimate
    assert found is not None
    assert found.trials == 4
    assert found.high is not None
    assert found.high < 1e6


def test_a_metric_nobody_recorded_is_missing_with_a_reason() -> None:
    analysis = analyse(synthetic_result())
    native = _cell(analysis, "memory_cgroup_bytes", "native")
    assert native.figure.estimate is None
    assert native.figure.missing
    container = _cell(analysis, "memory_cgroup_bytes", "container")
    assert container.figure.estimate is not None
    assert container.ratio is not None
    assert container.ratio.estimate is None
    assert "native" in container.ratio.missing


def test_the_base_has_no_ratio_to_itself() -> None:
    analysis = analyse(synthetic_result())
    assert all(cell.ratio is None for row in analysis.rows for cell in row.cells if cell.driver == "native")


def test_emulated_drivers_come_last_whatever_the_suite_says() -> None:
    result = synthetic_result()
    turned = replace(result, header=replace(result.header, drivers=result.header.drivers[::-1]))
    assert [view.name for view in analyse(turned).drivers] == ["native", "container", "qemu"]


def test_the_same_result_gives_the_same_analysis_whatever_order_its_trials_stand_in() -> None:
    result = synthetic_result()
    turned = replace(result, trials=result.trials[::-1])
    assert analyse(result) == analyse(synthetic_result())
    assert analyse(turned).rows == analyse(result).rows


def test_another_result_draws_another_interval() -> None:
    result = synthetic_result()
    other = replace(result, header=replace(result.header, result_id="another"))
    one, two = (analyse(each).driver("container").performance.estimate for each in (result, other))
    assert one is not None
    assert two is not None
    assert (one.value, one.trials) == (two.value, two.trials)
    assert (one.low, one.high) != (two.low, two.high)


def test_no_base_no_ratio() -> None:
    analysis = analyse(synthetic_result(without=("native",)))
    assert analysis.base is None
    assert all(cell.ratio is None for row in analysis.rows for cell in row.cells)
    assert "base" in {caution.subject for caution in analysis.cautions}


def test_trials_of_another_image_are_a_problem_named_first() -> None:
    result = synthetic_result()
    odd = replace(result, trials=(replace(result.trials[0], image_digest="sha256:00"), *result.trials[1:]))
    assert analyse(odd).cautions[0].severity == "problem"


def test_a_driver_with_an_image_of_the_user_s_is_a_warning_and_no_fault_of_the_run() -> None:
    result = synthetic_result()
    foreign = tuple(
        replace(trial, image_digest="sha256:00") if trial.case.driver == "qemu" else trial for trial in result.trials
    )
    found = analyse(replace(result, trials=foreign)).cautions
    (told,) = [caution for caution in found if "the same bits" in caution.message]
    assert (told.severity, told.subject) == ("warning", "qemu")
    assert "an image of the user's, sha256:00" in told.message


def test_few_trials_name_the_command_that_takes_more() -> None:
    few = next(caution for caution in analyse(synthetic_result()).cautions if caution.subject == "trials")
    command = "isomark run quick --drivers native,container,qemu --workloads boot,cpu,memory,disk,http --trials 10"
    assert few.remedy == command
    assert "at most 87.5 % of cases" in few.message
    assert "trials" not in _subjects(synthetic_result(trials=10, failed=()))


def test_a_single_trial_has_medians_and_no_intervals() -> None:
    analysis = analyse(synthetic_result(trials=1, failed=()))
    found = _cell(analysis, "boot_seconds", "qemu").figure.estimate
    assert found is not None
    assert (found.low, found.high) == (None, None)
    assert any("single finished trial" in caution.message for caution in analysis.cautions)


def test_an_unfinished_result_says_what_is_left_and_how_to_go_on() -> None:
    result = synthetic_result()
    part = replace(result, trials=result.trials[:40])
    caution = next(caution for caution in analyse(part).cautions if caution.subject == "schedule")
    assert "35 of 75" in caution.message
    assert "--resume" in caution.remedy


def test_a_result_without_any_trial_has_no_figure_and_a_reason_for_each() -> None:
    analysis = analyse(replace(synthetic_result(), trials=()))
    cells = [cell for row in analysis.rows if row.workload for cell in row.cells]
    assert all(cell.figure.estimate is None and cell.figure.missing for cell in cells)


def test_without_the_boot_workload_start_is_missing_and_not_guessed() -> None:
    result = synthetic_result()
    workloads = tuple(workload for workload in result.header.workloads if workload.name != "boot")
    trials = tuple(trial for trial in result.trials if trial.case.workload != "boot")
    analysis = analyse(replace(result, header=replace(result.header, workloads=workloads), trials=trials))
    assert all(cell.figure.estimate is None for cell in analysis.start[0].cells)
    assert all(way.ready for way in analysis.ways)


def test_the_image_of_a_driver_that_lost_its_size_is_missing() -> None:
    result = synthetic_result()
    drivers = (*result.header.drivers[:2], replace(result.header.drivers[2], image_compressed_bytes=None))
    analysis = analyse(replace(result, header=replace(result.header, drivers=drivers)))
    cell = _cell(analysis, "image_compressed_bytes", "qemu")
    assert cell.figure.estimate is None
    assert cell.ratio is not None
    assert cell.ratio.estimate is None


def test_a_hostile_figure_makes_its_ratio_missing_and_nothing_else() -> None:
    result = synthetic_result()
    zeroed = tuple(
        replace(trial, samples=tuple(replace(sample, value=0.0) for sample in trial.samples))
        if trial.case == Case("cpu", "native")
        else trial
        for trial in result.trials
    )
    analysis = analyse(replace(result, trials=zeroed))
    assert _cell(analysis, "events_per_second", "container").ratio.estimate is None
    assert _cell(analysis, "events_per_second", "container").figure.estimate is not None
    assert analysis.driver("container").performance.estimate is None


def test_the_worst_workload_is_named() -> None:
    worst = Observed(synthetic_result()).worst("container", "native")
    assert worst.detail == "http: Requests"


def test_a_case_that_was_never_taken_says_so() -> None:
    analysis = analyse(_without(synthetic_result(failed=()), workload="http", driver="qemu"))
    assert _cell(analysis, "requests_per_second", "qemu").figure.missing == "no trial of it was recorded"


def test_a_reason_that_a_trial_gives_is_the_one_that_is_shown() -> None:
    result = synthetic_result()
    trials = tuple(
        replace(trial, missing={"memory_cgroup_bytes": "a process has no cgroup of its own"})
        if trial.case == Case("boot", "native")
        else trial
        for trial in result.trials
    )
    analysis = analyse(replace(result, trials=trials))
    assert _cell(analysis, "memory_cgroup_bytes", "native").figure.missing == "a process has no cgroup of its own"


def test_metrics_that_nobody_measured_have_no_row() -> None:
    assert "memory_hypervisor_bytes" not in {row.metric.name for row in analyse(synthetic_result()).rows}
    assert "memory_hypervisor_bytes" in {row.metric.name for row in _servers().rows}


def test_a_study_gives_its_own_rows_and_no_start() -> None:
    analysis = _servers()
    assert [row.metric for row in analysis.lifecycle] == list(metrics.LIFECYCLE)
    assert {row.workload for row in analysis.start} == {"boot", "http"}
    assert Observed(servers_result()).slowest_start("qemu").detail in ("boot", "http")


def test_a_study_that_failed_everywhere_leaves_reasons_and_one_that_was_never_taken_nothing() -> None:
    cells = {cell.driver: cell for cell in _servers().lifecycle[0].cells}
    assert "does not resume" in cells["qemu-uefi"].figure.missing
    assert analyse(_without(servers_result(), workload="lifecycle")).lifecycle == ()


def test_a_search_lists_its_attempts_in_the_order_they_were_made() -> None:
    search = next(one for one in _servers().searches if one.driver == "container")
    limits = [attempt.limit_bytes for attempt in search.attempts]
    assert limits[0] == 256 * 1024**2
    least = min(attempt.limit_bytes for attempt in search.attempts if attempt.completed)
    assert _cell(_servers(), "minimum_memory_bytes", "container").figure.estimate.value == least


def test_the_attempts_of_a_search_that_failed_are_not_shown_as_one() -> None:
    result = servers_result()
    failed = tuple(
        replace(trial, outcome=Outcome(OutcomeKind.FAILED, "stopped")) if trial.case.workload == "minimum" else trial
        for trial in result.trials
    )
    assert analyse(replace(result, trials=failed)).searches == ()


def test_instances_that_the_hosts_memory_does_not_show_are_a_caution_with_their_names() -> None:
    result = servers_result()
    noise = (0, 900e6, -700e6, 800e6, -900e6)
    disturbed = tuple(
        replace(
            trial,
            samples=tuple(
                replace(sample, value=sample.value + noise[sample.round or 0])
                if sample.metric == "host_used_bytes"
                else sample
                for sample in trial.samples
            ),
        )
        if trial.case == Case("density", "container")
        else trial
        for trial in result.trials
    )
    assert "memory" not in {caution.subject for caution in _servers().cautions}
    analysis = analyse(replace(result, trials=disturbed))
    caution = next(caution for caution in analysis.cautions if caution.subject == "memory")
    assert "instances of container:" in caution.message


def test_what_a_study_asks_of_its_payload_is_no_cost_beside_those_of_the_bare_process() -> None:
    result = servers_result()
    inside = Metric("inside_bytes", "Used inside", "bytes", "lower", "What the guest says.")
    workloads = tuple(
        replace(one, metrics=(inside,)) if one.load == "density" else one for one in result.header.workloads
    )
    trials = tuple(
        replace(one, samples=(*one.samples, Sample("inside_bytes", 3e7))) if one.case.workload == "density" else one
        for one in result.trials
    )
    analysis = analyse(replace(result, header=replace(result.header, workloads=workloads), trials=trials))
    assert inside not in {row.metric for row in analysis.rows}
    assert "Used inside" in {line.name for one in analysis.footprints for line in one.beside}
