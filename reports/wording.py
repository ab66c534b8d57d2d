"""How figures and their intervals are written, and the answer in plain words that a report begins with."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench import metrics
from bench.analysis import Cell, Check, DriverView, Figure, Row, Scale
from bench.model import Metric
from bench.units import format_bytes, format_quantity, format_seconds, significant
from reports.text import shorten

DASH: Final = "—"
_NUMBER: Final = re.compile(r"[+-]?[\d,.]+")
_SIGNS: Final = ("+", "-")
_BEFORE_UNIT: Final = re.compile(r"(?<=\d) (?=\S{1,6}(?!\S))")
"""A long unit, such as requests/s, may stand on a line of its own."""


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


def signed(count: float) -> str:
    """Return ``count`` bytes with its sign."""
    return f"+{format_bytes(count)}" if count > 0 else format_bytes(count)


def shown(figure: Figure, write: Callable[[float], str]) -> Shown:
    """Return ``figure`` with its interval, both written by ``write``."""
    estimate = figure.estimate
    if estimate is None:
        return Shown(DASH, why=figure.missing)
    value = unbroken(write(estimate.value))
    if estimate.trials == 0 or estimate.low is None or estimate.high is None or estimate.low == estimate.high:
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


def label(view: DriverView, length: int | None = None) -> str:
    """Return a driver's name, marked where it is emulated; of ``length`` characters, the mark is never what is lost."""
    mark = " (emulated)" if view.emulated else ""
    return f"{view.name if length is None else shorten(view.name, length - len(mark))}{mark}"


def row_title(row: Row) -> str:
    """Return what a row shows, with the workload where its title alone would not say."""
    alone = row.workload in ("", "boot") or (row.metric in metrics.BUILT_IN and row.metric != metrics.BOOT)
    return row.metric.title if alone else f"{row.workload}: {row.metric.title}"


def sentence(text: str) -> str:
    """Return ``text`` with a capital letter and a full stop."""
    stripped = text.strip()
    ended = stripped if stripped.endswith((".", "!", "?")) else f"{stripped}."
    return ended[:1].upper() + ended[1:]


def _interval(value: str, low: str, high: str) -> str:
    """Join the ends of an interval, with the unit once or not at all where the figure already has it."""
    dash = " to " if low[0] in _SIGNS or high[0] in _SIGNS else "–"
    units = [_NUMBER.sub("", text, count=1) for text in (value, low, high)]
    if units[1] != units[2]:
        return f"{low}{dash}{high}"
    if units[0] == units[1]:
        return f"{low.removesuffix(units[1])}{dash}{high.removesuffix(units[2])}"
    return f"{low.removesuffix(units[1])}{dash}{high}"
