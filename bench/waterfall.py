"""The way of an instance from spawned to ready, step by step, on the host's one clock.

Events (what the host saw) and steps (what a driver or a guest told of) of many trials become one list of marks: when
each began, as the median over the trials that had it. What lies between two marks is the earlier one's length, so that
lengths add up to the start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final

from bench.metrics import ANSWER
from bench.model import Trial
from bench.observed import Observed
from bench.stats import Estimate

MOST_MARKS: Final = 80
"""A guest may claim other steps in every trial; of more than this, those that most trials had are shown."""
ONE_BY_ONE: Final = 16
"""As many marks are shown each on a line of its own, however short."""
SHORT: Final = 0.02
"""Of the whole start; what takes less may share a line."""
FOLDED: Final = 3
"""At least as many short steps after one another share a line."""


@dataclass(frozen=True)
class Mark:
    """Something that began on the way: ``begin`` counts from spawned, in seconds.

    ``length_seconds`` lasts until the next mark that most trials had. It is ``None`` from ready on, and for a mark that
    most trials lacked.
    """

    name: str
    is_event: bool
    begin: Estimate
    length_seconds: float | None = None


@dataclass(frozen=True)
class Stretch:
    """One line of a waterfall: a mark, or several short steps after one another."""

    marks: tuple[Mark, ...]

    @property
    def begin(self) -> Estimate:
        """When the first of them began."""
        return self.marks[0].begin

    @property
    def length_seconds(self) -> float | None:
        """How long all of them took, ``None`` if that is known of none."""
        known = [mark.length_seconds for mark in self.marks if mark.length_seconds is not None]
        return sum(known) if known else None


@dataclass(frozen=True)
class Answer:
    """The first answer on the network in the trials of ``workload``, seconds after spawned and after ready."""

    workload: str
    begin: Estimate
    after_ready: Estimate


@dataclass(frozen=True)
class Way:
    """The way of one driver in ``workload``. ``trials`` had a start; ``left_out`` counts rarer marks, not shown.

    Without marks ``missing`` says why there are none.
    """

    driver: str
    workload: str
    marks: tuple[Mark, ...]
    trials: int
    answers: tuple[Answer, ...] = ()
    left_out: int = 0
    missing: str = ""

    @property
    def ready(self) -> Estimate | None:
        """When the payload was ready."""
        return next((mark.begin for mark in self.marks if mark.is_event and mark.name == "ready"), None)

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """The marks as lines: each on its own, unless there are many and most of them are short."""
        if len(self.marks) <= ONE_BY_ONE or self.ready is None:
            return tuple(Stretch((mark,)) for mark in self.marks)
        least = SHORT * self.ready.value
        found: list[Stretch] = []
        for short, group in groupby(self.marks, lambda mark: _is_short(mark, least)):
            marks = tuple(group)
            whole = short and len(marks) >= FOLDED
            found.extend([Stretch(marks)] if whole else [Stretch((mark,)) for mark in marks])
        return tuple(found)


def way(observed: Observed, driver: str) -> Way:
    """Return the way of ``driver`` over the finished trials of the idle workload, with the first answers of others."""
    workload = ", ".join(observed.idle)
    seen = [times for trial in observed.finished(observed.idle, driver) if (times := _times(trial))]
    if not seen:
        missing = observed.why_missing(observed.idle[0], driver) if observed.idle else "no workload starts just one"
        return Way(driver, workload, (), 0, missing=missing)
    counts = Counter(key for times in seen for key in times)
    shown = dict(counts.most_common(MOST_MARKS))
    marks: list[Mark] = []
    for key in shown:
        begin = observed.estimate([times[key] for times in seen if key in times], "way", driver, *map(str, key))
        if begin is not None:
            marks.append(Mark(key[1], key[0], begin))
    marks.sort(key=lambda mark: (mark.begin.value, (mark.is_event, mark.name) != (True, "spawned")))
    answers = tuple(_answers(observed, driver))
    return Way(driver, workload, _measured(marks, len(seen)), len(seen), answers, len(counts) - len(shown))


_Key = tuple[bool, str, int]
"""Whether it is an event, its name, and which of that name within the trial: some steps are done twice."""


def _times(trial: Trial) -> dict[_Key, float]:
    """Return when each mark of a trial began, in seconds since spawned and in that order; nothing without a start."""
    at = {event.name: event.at_seconds for event in trial.events}
    if "spawned" not in at or "ready" not in at:
        return {}
    points: list[tuple[float, bool, str]] = [
        (event.at_seconds, True, event.name) for event in trial.events if event.name != "exited"
    ]
    points += [(step.at_seconds, False, step.name) for step in trial.steps if step.name != ANSWER]
    points.sort(key=lambda point: (point[0], point[2] != "spawned"))
    times: dict[_Key, float] = {}
    numbers: Counter[tuple[bool, str]] = Counter()
    for seconds, is_event, name in points:
        if seconds >= at["spawned"]:
            times[is_event, name, numbers[is_event, name]] = seconds - at["spawned"]
            numbers[is_event, name] += 1
    return times


def _measured(marks: Sequence[Mark], trials: int) -> tuple[Mark, ...]:
    """Give every mark before ready that most trials had the time until the next such mark."""
    usual = [mark for mark in marks if 2 * mark.begin.trials > trials]
    lengths: dict[int, float] = {}
    for mark, following in pairwise(usual):
        if mark.is_event and mark.name == "ready":
            break
        lengths[id(mark)] = following.begin.value - mark.begin.value
    return tuple(Mark(mark.name, mark.is_event, mark.begin, lengths.get(id(mark))) for mark in marks)


def _is_short(mark: Mark, least: float) -> bool:
    return not mark.is_event and (mark.length_seconds is None or mark.length_seconds < least)


def _answers(observed: Observed, driver: str) -> Iterable[Answer]:
    for workload in observed.header.workloads:
        if workload.load != "http":
            continue
        pairs = [pair for trial in observed.finished((workload.name,), driver) if (pair := _answer_of(trial))]
        begin = observed.estimate([answer for _, answer in pairs], "answer", workload.name, driver)
        after = observed.estimate([answer - ready for ready, answer in pairs], "after", workload.name, driver)
        if begin is not None and after is not None:
            yield Answer(workload.name, begin, after)


def _answer_of(trial: Trial) -> tuple[float, float] | None:
    """Return ready and first answer of a trial, in seconds since spawned."""
    at = {event.name: event.at_seconds for event in trial.events}
    answer = next((step.at_seconds for step in trial.steps if step.name == ANSWER), None)
    if answer is None or not {"spawned", "ready"} <= at.keys():
        return None
    return at["ready"] - at["spawned"], answer - at["spawned"]
