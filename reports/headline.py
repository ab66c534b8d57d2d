"""The answer in plain words that a report begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench import metrics
from bench.analysis import Analysis, DriverView, Row
from bench.model import Metric
from bench.units import format_quantity
from reports.wording import percent, unbroken

ONE_BY_ONE: Final = 2
"""As many drivers of a kind are named each; of more the sentences give a range."""
_BARE: Final = {"process": "bare process", "container": "container", "vm": "virtual server"}
_MANY: Final = {"process": "bare processes", "container": "containers", "vm": "virtual servers"}


@dataclass(frozen=True)
class Party:
    """Drivers that a sentence speaks of as one: a single one, or all of a kind that are emulated or are not."""

    who: str
    views: tuple[DriverView, ...]

    @property
    def definite(self) -> str:
        """The name as the subject of a sentence."""
        return f"the {self.who}"


def sentences(analysis: Analysis) -> list[str]:
    """Return the answer: throughput, start, memory, and what emulation means for them."""
    parties = _parties(analysis)
    others = [party for party in parties if not party.views[0].is_base]
    found = [_throughput(analysis, others)]
    for rows, metric, opening in (
        (analysis.start, metrics.BOOT, "From start to ready"),
        (analysis.memory, metrics.MEMORY_PSS, "Host memory of an idle instance"),
    ):
        row = next((row for row in rows if row.metric == metric), None)
        parts = [f"{party.who} {span}" for party in parties if row and (span := _span(row, party))]
        if parts:
            found.append(f"{opening}: {', '.join(parts)}.")
    if any(view.emulated for view in analysis.drivers):
        found.append(
            "Emulated means a CPU simulated in software: its speed says nothing about a virtual server on hardware."
        )
    return found


def _parties(analysis: Analysis) -> list[Party]:
    groups: dict[tuple[str, bool], list[DriverView]] = {}
    for view in analysis.drivers:
        groups.setdefault((view.kind, view.emulated), []).append(view)
    parties = []
    for (kind, emulated), views in groups.items():
        if len(views) > ONE_BY_ONE:
            who = f"{len(views)} {'emulated ' if emulated else ''}{_MANY[kind]}"
            parties.append(Party(who, tuple(views)))
        else:
            parties += [Party(_who(analysis, view), (view,)) for view in views]
    return parties


def _throughput(analysis: Analysis, others: Sequence[Party]) -> str:
    if analysis.base is None:
        return "No bare process took part, so there is no throughput to compare with."
    if not others:
        return "Only the bare process took part, so there is nothing to compare it with."
    workloads = list(dict.fromkeys(row.workload for row in analysis.throughput))
    if not workloads:
        return "No workload had a throughput; what was measured beside it stands below."
    whole: list[str] = []
    partly: list[str] = []
    for party in others:
        ratios = [view.performance.estimate.value for view in party.views if view.performance.estimate is not None]
        if ratios:
            verb = "at" if whole else "ran at"
            whole.append(f"{party.definite} {verb} {_range([percent(ratio) for ratio in _ends(ratios)])}")
        partly += _lacking(analysis, party, len(ratios))
    over = f"{'mean over ' if len(workloads) > 1 else ''}{_listed(workloads)}"
    clauses = [f"{_listed(whole)} of its throughput ({over})"] if whole else []
    return f"Against a bare process, {'; '.join([*clauses, *partly])}."


def _lacking(analysis: Analysis, party: Party, known: int) -> list[str]:
    """Say what those of a party without a mean did: each alone, or how many they are."""
    lacking = [view for view in party.views if view.performance.estimate is None]
    if len(party.views) == 1:
        return [_partly(analysis, party.definite, view) for view in lacking]
    if not lacking:
        return []
    subject = f"{len(lacking)} of them" if known else party.definite
    return [f"{subject} {'have' if len(lacking) > 1 else 'has'} no figure for some workload"]


def _partly(analysis: Analysis, who: str, view: DriverView) -> str:
    """Say what a driver without a mean did on the workloads that it has figures for."""
    found: dict[str, list[float]] = {}
    for row in analysis.throughput:
        ratios = found.setdefault(row.workload, [])
        ratios.extend(
            cell.ratio.estimate.value
            for cell in row.cells
            if cell.driver == view.name and cell.ratio and cell.ratio.estimate
        )
    values = [ratio for ratios in found.values() for ratio in ratios]
    if not values:
        return f"{who} has no throughput"
    span = _range([percent(ratio) for ratio in _ends(values)])
    have, lack = ([name for name, ratios in found.items() if bool(ratios) is wanted] for wanted in (True, False))
    return f"{who} ran at {span} on {_listed(have)}, with no figure for {_listed(lack)}"


def _span(row: Row, party: Party) -> str:
    """Return the figure of a party, or from the least to the most of them; nothing where none has any."""
    names = [view.name for view in party.views]
    values = [cell.figure.estimate.value for cell in row.cells if cell.driver in names and cell.figure.estimate]
    if not values:
        return ""
    some = f" ({len(values)} of them)" if len(values) < len(names) else ""
    return _range([_written(value, row.metric) for value in _ends(values)]) + some


def _written(value: float, metric: Metric) -> str:
    return format_quantity(value, metric.unit)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _range(ends: Sequence[str]) -> str:
    return " to ".join(map(unbroken, dict.fromkeys(ends)))


def _who(analysis: Analysis, view: DriverView) -> str:
    """Name a driver in plain words; by its name too, where another is of the same kind."""
    marks = [view.name] if sum(other.kind == view.kind for other in analysis.drivers) > 1 else []
    marks += ["emulated"] if view.emulated else []
    return f"{_BARE[view.kind]} ({', '.join(marks)})" if marks else _BARE[view.kind]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
