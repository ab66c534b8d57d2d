"""The way to ready as marks: medians since spawned, merged from events and steps, with lengths that add up."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_result import DIGEST, synthetic_result
from synthetic_servers import servers_result

from bench.analysis import Analysis, analyse
from bench.model import Case, Event, Outcome, OutcomeKind, Step, Trial
from bench.observed import Observed
from bench.waterfall import MOST_MARKS, Way, way

QEMU = Case("boot", "qemu")


@cache
def _servers() -> Analysis:
    return analyse(servers_result())


def _trial(index: int, steps: dict[str, float], ready: float = 10.0, begun: float = 100.0, **events: float) -> Trial:
    times = {"spawned": 0.0, **events, "ready": ready, "exited": ready + 1}
    return Trial(
        index, index, QEMU, Outcome(OutcomeKind.OK), DIGEST,
        events=tuple(Event(name, begun + at) for name, at in times.items()),  # type: ignore[arg-type]
        steps=tuple(Step(name, begun + at) for name, at in steps.items()),
    )  # fmt: skip


def _way(*trials: Trial) -> Way:
    return way(Observed(replace(synthetic_result(), trials=trials)), "qemu")


def _begins(found: Way) -> dict[str, float]:
    return {mark.name: pytest.approx(mark.begin.value) for mark in found.marks}


def test_a_mark_begins_at_the_median_since_spawned_whatever_the_clock_said() -> None:
    found = _way(_trial(0, {"disk": 1}), _trial(1, {"disk": 2}, begun=5000.0), _trial(2, {"disk": 6}, begun=7.5))
    assert _begins(found) == {"spawned": 0.0, "disk": 2.0, "ready": 10.0}
    mark = found.marks[1]
    assert (mark.begin.low, mark.begin.high, mark.begin.trials) == (pytest.approx(1), pytest.approx(6), 3)


def test_events_and_steps_are_merged_in_the_order_of_time() -> None:
    found = _way(_trial(0, {"domain": 1, "sysinit.target": 7}, kernel=2.0, init=5.0))
    assert [(mark.name, mark.is_event) for mark in found.marks] == [
        ("spawned", True), ("domain", False), ("kernel", True), ("init", True), ("sysinit.target", False),
        ("ready", True),
    ]  # fmt: skip
    assert [mark.length_seconds for mark in found.marks] == [*map(pytest.approx, (1, 1, 3, 2, 3)), None]


def test_a_processes_way_has_no_kernel_and_no_init() -> None:
    ways = {one.driver: one for one in analyse(synthetic_result()).ways}
    events = {name: [mark.name for mark in one.marks if mark.is_event] for name, one in ways.items()}
    assert events["native"] == events["container"] == ["spawned", "ready"]
    assert events["qemu"] == ["spawned", "kernel", "init", "ready"]


def test_a_step_taken_twice_is_two_marks() -> None:
    twice = replace(_trial(0, {}), steps=(Step("mount /proc", 101.0), Step("mount /proc", 104.0)))
    marks = [mark for mark in _way(twice).marks if mark.name == "mount /proc"]
    assert [mark.begin.value for mark in marks] == [pytest.approx(1.0), pytest.approx(4.0)]


def test_a_step_that_claims_to_be_an_event_is_not_one() -> None:
    found = _way(_trial(0, {"ready": 1.0, "spawned": 2.0}))
    assert found.ready is not None
    assert found.ready.value == pytest.approx(10.0)


def test_a_mark_that_few_trials_have_is_counted_and_cuts_nothing() -> None:
    found = _way(_trial(0, {"disk": 2, "fsck": 5}), _trial(1, {"disk": 2}), _trial(2, {"disk": 2}))
    marks = {mark.name: mark for mark in found.marks}
    assert marks["fsck"].begin.trials == 1
    assert marks["fsck"].length_seconds is None
    assert marks["disk"].length_seconds == pytest.approx(8.0)


def test_what_happens_after_ready_has_a_beginning_and_no_length() -> None:
    found = _way(_trial(0, {"multi-user.target": 12.0}))
    assert _begins(found)["multi-user.target"] == 12.0
    assert sum(mark.length_seconds or 0 for mark in found.marks) == pytest.approx(10.0)


def test_a_failed_trial_and_one_that_was_never_ready_are_in_no_way() -> None:
    failed = replace(_trial(0, {"disk": 1}), outcome=Outcome(OutcomeKind.FAILED, "panic"))
    unready = replace(_trial(1, {"disk": 1}), events=(Event("spawned", 100.0),))
    assert _way(failed, unready, _trial(2, {"disk": 3})).trials == 1
    nothing = _way(failed)
    assert nothing.marks == ()
    assert "panic" in nothing.missing


def test_the_first_answer_is_that_of_the_trials_that_serve() -> None:
    for one in _servers().ways:
        (answer,) = one.answers
        assert answer.workload == "http"
        assert answer.after_ready.value == pytest.approx(
            0.0104 if one.driver not in ("native", "container") else 0.0004
        )
        assert one.ready is not None
        assert answer.begin.value > one.ready.value
        assert "first answer" not in {mark.name for mark in one.marks}


def test_a_guest_that_claims_other_steps_in_every_trial_fills_no_report() -> None:
    trials = [_trial(index, {f"unit {index} {number}": number / 10 for number in range(64)}) for index in range(5)]
    found = _way(*trials)
    assert len(found.marks) == MOST_MARKS
    assert found.left_out == 5 * 64 + 2 - MOST_MARKS
    assert {"spawned", "ready"} <= {mark.name for mark in found.marks}


def test_the_ready_event_and_the_boot_metric_agree() -> None:
    analysis = analyse(synthetic_result())
    boot = next(row for row in analysis.start if row.metric.name == "boot_seconds")
    for one, cell in zip(analysis.ways, boot.cells, strict=True):
        assert one.ready is not None
        assert cell.figure.estimate is not None
        assert one.ready.value == pytest.approx(cell.figure.estimate.value, rel=1e-6)


def test_many_short_steps_share_a_line_and_none_is_lost() -> None:
    container = next(one for one in _servers().ways if one.driver == "container")
    lines = container.stretches
    assert len(lines) < len(container.marks)
    assert tuple(mark for line in lines for mark in line.marks) == container.marks
    assert sum(line.length_seconds or 0 for line in lines) == pytest.approx(container.ready.value)


def test_the_order_of_the_trials_changes_nothing() -> None:
    result = servers_result()
    assert analyse(replace(result, trials=result.trials[::-1])).ways == analyse(result).ways


TIMES = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 20), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TIMES, st.floats(0.001, 20)), min_size=1, max_size=5))
def test_lengths_are_never_negative_and_add_up_to_the_start(drawn: list[tuple[dict[str, float], float]]) -> None:
    found = _way(*(_trial(index, steps, ready) for index, (steps, ready) in enumerate(drawn)))
    lengths = [mark.length_seconds for mark in found.marks if mark.length_seconds is not None]
    assert all(length >= 0 for length in lengths)
    assert found.ready is not None
    assert sum(lengths) == pytest.approx(found.ready.value)
    assert [mark.begin.value for mark in found.marks] == sorted(mark.begin.value for mark in found.marks)
