"""How figures and their intervals are written, and the answer in plain words that a report begins with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bench import metrics
from bench.analysis import Analysis, Cell, Check, DriverView, Figure, Row, Scale
from bench.model import Metric
from bench.units import format_quantity, format_seconds, significant

DASH: Final = "—"
_NUMBER: Final = re.compile(r"-?[\d,.]+")
_BEFORE_UNIT: Final = re.compile(r"(?<=\d) (?=\S)")
_BARE: Final = {"process": "bare process", "container": "container", "vm": "virtual server"}


@dataclass(frozen=True)
class Shown:
    """A figure as written: ``value`` is a dash and ``why`` the reason where it is missing."""

    value: str
    interval: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.interval})" if self.interval else self.value


def percent(ratio: float) -> str:
    """Return ``ratio`` in per cent with three significant figures."""
    return f"{significant(100 * ratio)} %"


def times(ratio: float) -> str:
    """Return ``ratio`` as a factor."""
    return f"{significant(ratio)}×"


def decimal_bytes(count: float) -> str:
    """Return ``count`` bytes in powers of ten, as the published table writes them."""
    unit, size = next((entry for entry in (("GB", 1e9), ("MB", 1e6)) if count >= entry[1]), ("kB", 1e3))
    return f"{significant(count / size)} {unit}"


_SCALES: Final[dict[Scale, Callable[[float], str]]] = {
    "bytes": decimal_bytes,
    "percent": percent,
    "seconds": format_seconds,
    "times": times,
}


def shown(figure: Figure, write: Callable[[float], str]) -> Shown:
    """Return ``figure`` with its interval, both written by ``write``."""
    estimate = figure.estimate
    if estimate is None:
        return Shown(DASH, why=figure.missing)
    value = unbroken(write(estimate.value))
    if estimate.trials == 0 or estimate.low is None or estimate.high is None:
        return Shown(value)
    return Shown(value, _interval(value, unbroken(write(estimate.low)), unbroken(write(estimate.high))))


def unbroken(text: str) -> str:
    """Return ``text`` with no line break between a number and its unit."""
    return _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", text)


def quantity(figure: Figure, metric: Metric) -> Shown:
    """Return the figure of a metric in that metric's unit."""
    return shown(figure, lambda value: format_quantity(value, metric.unit))


def relative(cell: Cell, metric: Metric) -> Shown | None:
    """Return a cell's quotient by the base: per cent where more is better, a factor where less is."""
    if cell.ratio is None:
        return None
    return shown(cell.ratio, percent if metric.direction == "higher" else times)


def claimed(check: Check) -> Shown:
    """Return the figure of a check in the unit of the published cell."""
    return shown(check.figure, _SCALES[check.scale])


def label(view: DriverView) -> str:
    """Return a driver's name, marked where it is emulated."""
    return f"{view.name} (emulated)" if view.emulated else view.name


def row_title(row: Row) -> str:
    """Return what a row shows, with the workload where its title alone would not say."""
    return f"{row.workload}: {row.metric.title}" if row.workload and row.workload != "boot" else row.metric.title


def sentence(text: str) -> str:
    """Return ``text`` with a capital letter and a full stop."""
    stripped = text.strip()
    ended = stripped if stripped.endswith((".", "!", "?")) else f"{stripped}."
    return ended[:1].upper() + ended[1:]


def headline(analysis: Analysis) -> list[str]:
    """Return the answer in sentences: throughput, start, memory, and what emulation means for them."""
    others = [view for view in analysis.drivers if not view.is_base]
    sentences = [_performance_sentence(analysis, others)]
    for row, opening in (
        (_row(analysis.start, metrics.BOOT), "From start to ready"),
        (_row(analysis.memory, metrics.MEMORY_PSS), "Host memory of an idle instance"),
    ):
        parts = [
            f"{_who(analysis, analysis.driver(cell.driver))} {quantity(cell.figure, row.metric).value}"
            for cell in row.cells
            if cell.figure.estimate is not None
        ]
        if parts:
            sentences.append(f"{opening}: {', '.join(parts)}.")
    if any(view.emulated for view in others):
        sentences.append(
            "Emulated means a CPU simulated in software: its speed says nothing about a virtual server on hardware."
        )
    return sentences


def _performance_sentence(analysis: Analysis, others: Sequence[DriverView]) -> str:
    if analysis.base is None:
        return "No bare process took part, so there is no throughput to compare with."
    if not others:
        return "Only the bare process took part, so there is nothing to compare it with."
    workloads = list(dict.fromkeys(row.workload for row in analysis.throughput))
    whole = [view for view in others if view.performance.estimate is not None]
    clauses = [_partly(analysis, view) for view in others if view not in whole]
    if whole:
        ran = [
            f"the {_who(analysis, view)} {'at' if place else 'ran at'} {shown(view.performance, percent).value}"
            for place, view in enumerate(whole)
        ]
        over = f"{'mean over ' if len(workloads) > 1 else ''}{_listed(workloads)}"
        clauses.insert(0, f"{_listed(ran)} of its throughput ({over})")
    return f"Against a bare process, {'; '.join(clauses)}."


def _partly(analysis: Analysis, view: DriverView) -> str:
    """Say what a driver without a mean did on the workloads that it has figures for."""
    found: dict[str, list[float]] = {}
    for row in analysis.throughput:
        ratios = found.setdefault(row.workload, [])
        ratios.extend(
            cell.ratio.estimate.value
            for cell in row.cells
            if cell.driver == view.name and cell.ratio and cell.ratio.estimate
        )
    who = f"the {_who(analysis, view)}"
    values = [ratio for ratios in found.values() for ratio in ratios]
    if not values:
        return f"{who} has no throughput"
    span = dict.fromkeys((percent(min(values)), percent(max(values))))
    have, lack = ([name for name, ratios in found.items() if bool(ratios) is wanted] for wanted in (True, False))
    return f"{who} ran at {unbroken(' to '.join(span))} on {_listed(have)}, with no figure for {_listed(lack)}"


def _who(analysis: Analysis, view: DriverView) -> str:
    """Name a driver in plain words; by its name too, where another is of the same kind."""
    marks = [view.name] if sum(other.kind == view.kind for other in analysis.drivers) > 1 else []
    marks += ["emulated"] if view.emulated else []
    return f"{_BARE[view.kind]} ({', '.join(marks)})" if marks else _BARE[view.kind]


def _row(rows: Sequence[Row], metric: Metric) -> Row:
    return next(row for row in rows if row.metric.name == metric.name)


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _interval(value: str, low: str, high: str) -> str:
    """Join the ends of an interval, with the unit once or not at all where the figure already has it."""
    units = [_NUMBER.sub("", text, count=1) for text in (value, low, high)]
    if units[1] != units[2]:
        return f"{low}–{high}"
    if units[0] == units[1]:
        return f"{low.removesuffix(units[1])}–{high.removesuffix(units[2])}"
    return f"{low.removesuffix(units[1])}–{high}"
