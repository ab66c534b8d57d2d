"""The reconciled memory of every driver's instances as one table: drivers are columns, lines of the sum are rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.analysis import Analysis, Estimate, Figure, Footprint, Line
from bench.units import format_bytes
from reports.wording import DASH, Shown, shown, signed


@dataclass(frozen=True)
class MemoryLine:
    """One row. ``anchor`` leads to its definition, ``metrics`` names what that was computed from.

    A cell is ``None`` where the line is no part of that driver's table.
    """

    name: str
    cells: tuple[Shown | None, ...]
    definition: str = ""
    anchor: str = ""
    metrics: tuple[str, ...] = ()
    is_sum: bool = False


@dataclass(frozen=True)
class MemoryGroup:
    """Rows that belong together."""

    lines: tuple[MemoryLine, ...]


def groups(analysis: Analysis) -> list[MemoryGroup]:
    """Return what was granted with the total, its parts with the residue, and what stands beside."""
    found = analysis.footprints
    if not found:
        return []
    totals = _rows(found, lambda one: [one.total] if one.total else [], "total", is_sum=True)
    parts = _rows(found, lambda one: one.parts, "part")
    residue = _rows(found, lambda one: [one.residue] if one.residue else [], "residue", is_sum=True, write=signed)
    beside = _rows(found, lambda one: one.beside, "beside")
    granted = MemoryLine("Granted", tuple(_granted(one) for one in found))
    return [MemoryGroup(lines) for lines in ((granted, *totals), (*parts, *residue), tuple(beside)) if lines]


def _rows(
    found: Sequence[Footprint],
    lines_of: Callable[[Footprint], Sequence[Line]],
    slug: str,
    *,
    is_sum: bool = False,
    write: Callable[[float], str] = format_bytes,
) -> list[MemoryLine]:
    """Return one row for each name that a line of any driver has, in the order in which they are met."""
    firsts: dict[str, Line] = {}
    for one in found:
        for line in lines_of(one):
            firsts.setdefault(line.name, line)
    rows = []
    for place, (name, first) in enumerate(firsts.items()):
        cells = tuple(
            _cell(one, next((line for line in lines_of(one) if line.name == name), None), write) for one in found
        )
        rows.append(MemoryLine(name, cells, first.definition, f"def-memory-{slug}-{place}", first.metrics, is_sum))
    return rows


def _cell(one: Footprint, line: Line | None, write: Callable[[float], str]) -> Shown | None:
    if line is None:
        return Shown(DASH, why=one.missing) if one.missing else None
    return shown(line.figure, write)


def _granted(one: Footprint) -> Shown:
    if one.missing:
        return Shown(DASH, why=one.missing)
    size = float(one.granted_bytes)
    return shown(Figure(Estimate(size, size, size, 0)), format_bytes)
