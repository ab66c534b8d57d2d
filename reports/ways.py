"""The way of one driver from spawned to ready as the lines of a table, each with its place in a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench.analysis import Answer, Figure, Mark, Stretch, Way
from bench.metrics import ANSWER
from bench.model import EventName
from bench.units import format_seconds
from reports.text import shorten
from reports.wording import DASH, Shown, percent, shown, unbroken

PHASES: Final[tuple[tuple[EventName, str], ...]] = (("kernel", "to kernel"), ("init", "to init"), ("ready", "to ready"))
"""The event that ends each phase of a start, and what the phase is called."""
LONGEST: Final = 60
_EVENTS: Final = {"kernel": "kernel: its first line", "spawned": "spawned: it is asked for"}


@dataclass(frozen=True)
class Part:
    """One of the short steps that share a line."""

    name: str
    begin: str


@dataclass(frozen=True)
class WayLine:
    """A line: ``left`` and ``width`` are per cent of the start, ``phase`` counts from 0; ``note`` says how often."""

    name: str
    is_event: bool
    begin: Shown
    length: str
    share: str
    left: float
    width: float
    phase: int
    note: str = ""
    parts: tuple[Part, ...] = ()


def lines(way: Way) -> list[WayLine]:
    """Return the lines of ``way``: its steps and events, then the first answers."""
    if way.ready is None:
        return []
    ends = {mark.name: mark.begin.value for mark in way.marks if mark.is_event}
    return [*(_line(way, stretch, ends) for stretch in way.stretches), *_answers(way)]


def phase_of(begin: float, ends: dict[str, float]) -> int:
    """Return which phase of a start ``begin`` is in, with the ``ends`` of those that it has."""
    return next((place for place, (name, _) in enumerate(PHASES) if begin < ends.get(name, 0.0)), len(PHASES) - 1)


def name_of(mark: Mark) -> str:
    """Return what a mark is called; whatever a guest wrote stays on one line."""
    return _EVENTS.get(mark.name, mark.name) if mark.is_event else shorten(mark.name, LONGEST)


def _line(way: Way, stretch: Stretch, ends: dict[str, float]) -> WayLine:
    first, begin, length = stretch.marks[0], stretch.begin.value, stretch.length_seconds
    total = ends["ready"]
    share = None if length is None or total <= 0 else length / total
    several = len(stretch.marks) > 1
    return WayLine(
        name=f"{len(stretch.marks)} short steps" if several else name_of(first),
        is_event=first.is_event,
        begin=_seconds(Figure(stretch.begin)),
        length=DASH if length is None else unbroken(format_seconds(length)),
        share=DASH if share is None else unbroken(percent(share)),
        left=min(100 * begin / total, 100.0) if total > 0 else 0.0,
        width=100 * share if share is not None else 0.0,
        phase=phase_of(begin, ends),
        note="" if several else _how_often(first, way.trials),
        parts=tuple(_part(mark, way.trials) for mark in stretch.marks) if several else (),
    )


def _answers(way: Way) -> Iterator[WayLine]:
    for answer in way.answers:
        yield WayLine(
            name=ANSWER,
            is_event=True,
            begin=_seconds(Figure(answer.begin)),
            length=DASH,
            share=DASH,
            left=0.0,
            width=0.0,
            phase=len(PHASES) - 1,
            note=_answered(answer, way.trials),
        )


def _answered(answer: Answer, trials: int) -> str:
    """Say which trials answered and how long after their own ready, for they did not idle."""
    often = "" if answer.begin.trials == trials else f", {answer.begin.trials} trials"
    after = unbroken(format_seconds(answer.after_ready.value))
    return f"in {shorten(answer.workload, 20)}, {after} after ready there{often}"


def _part(mark: Mark, trials: int) -> Part:
    often = _how_often(mark, trials)
    return Part(f"{name_of(mark)} ({often})" if often else name_of(mark), _seconds(Figure(mark.begin)).value)


def _how_often(mark: Mark, trials: int) -> str:
    return "" if mark.begin.trials == trials else f"{mark.begin.trials} of {trials} trials"


def _seconds(figure: Figure) -> Shown:
    return shown(figure, format_seconds)
