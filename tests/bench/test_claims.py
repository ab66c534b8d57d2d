"""The verdicts on published figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_result import synthetic_result

from bench.analysis import analyse
from bench.claims import SIDES, Check, Published, Verdict, judge, within_emulation
from bench.metrics import MINIMUM_MEMORY
from bench.model import Case, Outcome, OutcomeKind, Sample, Trial
from bench.observed import Figure
from bench.published import CLAIMS
from bench.result import Result, WorkloadRecord
from bench.stats import Estimate, counted

AROUND = Published("about 100", 90, 110)
ENDS = st.floats(0, 1000)


def _figure(low: float, high: float) -> Figure:
    return Figure(Estimate((low + high) / 2, low, high, 5))


def _verdicts(result: Result, claim: str, side: str) -> dict[str, Check]:
    checked = next(entry for entry in analyse(result).claims if entry.claim.name == claim)
    return {
        reading.definition.name: check
        for reading in checked.readings
        for check in reading.checks
        if check is not None and check.side == side
    }


@given(ENDS, ENDS)
def test_a_verdict_needs_the_whole_interval(one: float, other: float) -> None:
    low, high = sorted((one, other))
    verdict = judge(_figure(low, high), AROUND, "below", "above").verdict
    inside = [90 <= end < 110 for end in (low, high)]
    if verdict is Verdict.REPRODUCED:
        assert all(inside)
    elif verdict is Verdict.REFUTED:
        assert high < 90 or low >= 110
    else:
        assert low < 90 <= high or low < 110 <= high


@pytest.mark.parametrize(
    ("low", "high", "verdict", "brief"),
    [
        (95, 105, Verdict.REPRODUCED, ""),
        (10, 20, Verdict.REFUTED, "below"),
        (200, 210, Verdict.REFUTED, "above"),
        (85, 95, Verdict.UNDEFINED, "interval crosses the limit"),
        (80, 120, Verdict.UNDEFINED, "interval crosses the limit"),
    ],
)
def test_the_verdict_says_in_which_direction_it_is_refuted(
    low: float, high: float, verdict: Verdict, brief: str
) -> None:
    judged = judge(_figure(low, high), AROUND, "below", "above")
    assert (judged.verdict, judged.brief) == (verdict, brief)


def test_a_missing_figure_is_undefined_with_its_reason() -> None:
    judged = judge(Figure(None, "all its 5 trials failed"), AROUND, "below", "above")
    assert (judged.verdict, judged.reason) == (Verdict.UNDEFINED, "all its 5 trials failed")


def test_a_single_trial_decides_nothing_and_names_the_remedy() -> None:
    judged = judge(Figure(Estimate(100, None, None, 1)), AROUND, "below", "above")
    assert judged.verdict is Verdict.UNDEFINED
    assert "--trials 10" in judged.reason


def test_a_verdict_on_few_trials_says_what_its_interval_is_worth() -> None:
    few = judge(Figure(Estimate(100, 95, 105, 3)), AROUND, "below", "above")
    enough = judge(Figure(Estimate(100, 95, 105, 6)), AROUND, "below", "above")
    assert (few.verdict, enough.verdict) == (Verdict.REPRODUCED, Verdict.REPRODUCED)
    assert "3 trials" in few.reason
    assert "75 %" in few.reason
    assert enough.reason == ""


def test_a_counted_size_needs_no_interval() -> None:
    assert judge(Figure(counted(100)), AROUND, "below", "above").verdict is Verdict.REPRODUCED


@pytest.mark.parametrize(("low", "high"), [(1, 2), (95, 105), (200, 210), (85, 95)])
def test_an_emulated_speed_never_decides(low: float, high: float) -> None:
    judged = within_emulation(judge(_figure(low, high), AROUND, "below", "above"), "below", "invalid")
    assert judged.verdict is Verdict.UNDEFINED
    assert judged.reason


def test_emulated_memory_can_only_refute_from_below() -> None:
    def verdict(low: float, high: float) -> Verdict:
        return within_emulation(judge(_figure(low, high), AROUND, "below", "above"), "below", "adds").verdict

    assert [verdict(1, 2), verdict(95, 105), verdict(200, 210)] == [
        Verdict.REFUTED,
        Verdict.UNDEFINED,
        Verdict.UNDEFINED,
    ]


def test_an_emulated_result_leaves_performance_and_start_of_the_virtual_server_open() -> None:
    for claim in ("performance", "start"):
        for side in ("vm", "relation"):
            checks = _verdicts(synthetic_result(), claim, side)
            assert {check.judgement.verdict for check in checks.values()} == {Verdict.UNDEFINED}
            assert all(check.emulated for check in checks.values() if check.driver)


def test_the_same_figures_on_hardware_decide() -> None:
    result = synthetic_result(emulated=False)
    start = _verdicts(result, "start", "vm")["start-ready"].judgement
    assert (start.verdict, start.brief) == (Verdict.REFUTED, "faster than claimed")
    assert _verdicts(result, "performance", "vm")["performance-mean"].judgement.verdict is Verdict.REFUTED
    assert _verdicts(result, "start", "relation")["start-ready"].judgement.verdict is Verdict.REPRODUCED


def test_a_container_that_starts_in_milliseconds_is_faster_than_claimed() -> None:
    judged = _verdicts(synthetic_result(), "start", "container")["start-ready"].judgement
    assert (judged.verdict, judged.brief) == (Verdict.REFUTED, "faster than claimed")


def test_a_container_of_nine_tenths_reproduces_the_claim() -> None:
    check = _verdicts(synthetic_result(), "performance", "container")["performance-mean"]
    assert check.judgement.verdict is Verdict.REPRODUCED
    assert check.figure.estimate is not None
    assert 0.90 < check.figure.estimate.value < 0.97


def test_what_names_another_platform_is_undefined() -> None:
    assert _verdicts(synthetic_result(), "image", "vm")["image-literal"].judgement.verdict is Verdict.UNDEFINED
    literal = _verdicts(synthetic_result(emulated=False), "performance", "vm")["performance-literal"]
    assert literal.judgement.verdict is Verdict.UNDEFINED
    assert literal.judgement.reason == "no xen-hvm took part"


def test_a_xen_hvm_on_hardware_decides_the_reading_that_means_it() -> None:
    result = synthetic_result(emulated=False)
    header = result.header
    drivers = tuple(replace(one, name="xen-hvm") if one.name == "qemu" else one for one in header.drivers)
    trials = tuple(
        replace(one, case=replace(one.case, driver="xen-hvm")) if one.case.driver == "qemu" else one
        for one in result.trials
    )
    renamed = replace(result, header=replace(header, drivers=drivers), trials=trials)
    check = _verdicts(renamed, "performance", "vm")["performance-literal"]
    assert (check.judgement.verdict, check.figure.detail) == (Verdict.REFUTED, "xen-hvm")


def test_a_granted_limit_is_shown_and_proves_nothing() -> None:
    check = _verdicts(synthetic_result(), "memory", "container")["memory-granted"]
    assert check.figure.estimate == counted(512 * 1024**2)
    assert check.judgement.verdict is Verdict.UNDEFINED


def with_minimum(result: Result, megabytes: dict[str, float]) -> Result:
    """``result`` with a search for the minimum that found ``megabytes`` for each driver in five trials."""
    searched = WorkloadRecord("minimum", "Minimum", "The least memory.", "minimum", ())
    trials = tuple(
        Trial(
            index=len(result.trials) + number,
            block=number % 5,
            case=Case("minimum", driver),
            outcome=Outcome(OutcomeKind.OK),
            image_digest="",
            samples=(Sample(MINIMUM_MEMORY.name, (size + number % 5) * 1e6),),
        )
        for number, (driver, size) in enumerate(pair for pair in megabytes.items() for _ in range(5))
    )
    header = replace(result.header, workloads=(*result.header.workloads, searched))
    return replace(result, header=header, trials=(*result.trials, *trials))


def test_without_a_search_for_the_minimum_its_reading_is_undefined() -> None:
    for side in SIDES:
        judged = _verdicts(synthetic_result(), "memory", side)["memory-minimum"].judgement
        assert (judged.verdict, judged.brief) == (Verdict.UNDEFINED, "not measured")
        assert "looks for the minimum" in judged.reason


@pytest.mark.parametrize(
    ("found", "verdicts"),
    [
        ({"qemu": 640, "container": 512}, {"vm": "reproduced", "container": "reproduced", "relation": "reproduced"}),
        ({"qemu": 76, "container": 2}, {"vm": "refuted", "container": "refuted", "relation": "refuted"}),
        ({"qemu": 900, "container": 512}, {"vm": "refuted", "container": "reproduced", "relation": "refuted"}),
    ],
)
def test_the_minimum_decides_on_hardware_and_for_the_container_alone_on_an_emulated_cpu(
    found: dict[str, float], verdicts: dict[str, str]
) -> None:
    for emulated in (False, True):
        result = with_minimum(synthetic_result(emulated=emulated), found)
        judged = {side: _verdicts(result, "memory", side)["memory-minimum"].judgement.verdict.value for side in SIDES}
        left = {"vm": "undefined", "container": verdicts["container"], "relation": "undefined"}
        assert judged == (left if emulated else verdicts)


def test_a_search_that_failed_leaves_its_reading_undefined_with_the_reason() -> None:
    result = with_minimum(synthetic_result(), {"qemu": 76, "container": 2})
    failed = Outcome(OutcomeKind.FAILED, "it mostly fails with a limit of 536870912 bytes")
    trials = tuple(
        replace(trial, outcome=failed) if trial.case == Case("minimum", "qemu") else trial for trial in result.trials
    )
    check = _verdicts(replace(result, trials=trials), "memory", "vm")["memory-minimum"]
    assert check.judgement.verdict is Verdict.UNDEFINED
    assert "mostly fails" in check.judgement.reason


def test_without_a_virtual_server_its_cells_are_undefined_and_the_container_still_decides() -> None:
    result = synthetic_result(without=("qemu",), failed=())
    assert {check.judgement.verdict for check in _verdicts(result, "start", "vm").values()} == {Verdict.UNDEFINED}
    assert _verdicts(result, "start", "vm")["start-ready"].judgement.reason == "no virtual server took part"
    assert _verdicts(result, "start", "container")["start-ready"].judgement.verdict is Verdict.REFUTED


def test_a_missing_workload_makes_the_mean_undefined_rather_than_a_mean_of_less() -> None:
    result = synthetic_result(emulated=False, failed=tuple(("http", "qemu", block) for block in range(5)))
    check = _verdicts(result, "performance", "vm")["performance-mean"]
    assert check.figure.estimate is None
    assert "all its 5 trials failed" in check.judgement.reason
    assert _verdicts(result, "performance", "vm")["performance-cpu"].figure.estimate is not None


def test_hardware_stands_for_virtual_servers_before_an_emulated_one() -> None:
    result = synthetic_result()
    header = result.header
    kvm = replace(header.drivers[-1], name="kvm", emulated=False)
    both = replace(result, header=replace(header, drivers=(*header.drivers, kvm)))
    assert analyse(both).vm == "kvm"


def test_every_definition_states_its_rule_and_has_a_name_of_its_own() -> None:
    definitions = [definition for claim in CLAIMS for definition in claim.definitions]
    assert len({definition.name for definition in definitions}) == len(definitions)
    for claim in CLAIMS:
        assert len(claim.definitions) >= 2
        assert set(claim.published) == set(SIDES)
    for definition in definitions:
        decidable = not definition.undecidable
        assert not decidable or "reproduced" in definition.text.lower()
