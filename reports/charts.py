"""The pictures of a report: what stands in their lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from bench.analysis import Analysis, Cell, Figure, Row
from bench.model import EventName
from bench.units import GIB, KIB, MIB, format_seconds
from reports import lanes, svg
from reports.lanes import Group, Lane
from reports.wording import DASH, label, percent, quantity, row_title, shown, times

PHASES: Final[tuple[tuple[EventName, str], ...]] = (("kernel", "to kernel"), ("init", "to init"), ("ready", "to ready"))


def throughput(analysis: Analysis) -> str:
    """Return the dots of every throughput relative to native, or nothing without a base."""
    return _ratio_chart(
        analysis,
        analysis.throughput,
        "throughput",
        "Throughput relative to native",
        "native = 100 %, further right is better",
        percent,
        lambda ratio: f"{100 * ratio:g} %",
    )


def costs(analysis: Analysis) -> str:
    """Return the dots of everything of which less is better, relative to native."""
    rows = (*analysis.costs, *(row for row in (*analysis.start, *analysis.memory) if "delay" not in row.metric.name))
    return _ratio_chart(
        analysis,
        rows,
        "costs",
        "Cost relative to native",
        "native = 1×, further left is better",
        times,
        lambda ratio: f"{ratio:g}×",
    )


def memory(analysis: Analysis) -> str:
    """Return bars of what an idle instance costs the host."""
    return _size_chart(analysis, analysis.memory, "memory", "Host memory of an idle instance")


def sizes(analysis: Analysis) -> str:
    """Return bars of the image's sizes."""
    return _size_chart(analysis, analysis.sizes, "sizes", "Image size")


def start(analysis: Analysis) -> str:
    """Return the way of each driver from spawned to ready."""
    order = {name: place for place, (name, _) in enumerate(PHASES)}
    found: list[Lane] = []
    for place, milestones in enumerate(analysis.milestones):
        view = analysis.driver(milestones.driver)
        last = milestones.seconds[-1][1] if milestones.seconds else None
        ends = tuple((order[name], seconds) for name, seconds in milestones.seconds)
        text = DASH if last is None else format_seconds(last)
        found.append(Lane(label(view), _style(place), view.emulated, text, last, phases=ends))
    if all(lane.value is None for lane in found):
        return ""
    groups = [Group("", tuple(found))]
    with svg.drawing():
        figure = lanes.phases(groups, [name for _, name in PHASES], "seconds since spawned")
        return svg.to_svg(figure, "chart-start", "From spawned to ready", _described(groups))


def _ratio_chart(
    analysis: Analysis,
    rows: Sequence[Row],
    slug: str,
    title: str,
    scale: str,
    write: Callable[[float], str],
    tick: Callable[[float], str],
) -> str:
    groups = [
        Group(
            row_title(row),
            tuple(
                _lane(analysis, cell, place, cell.ratio, shown(cell.ratio, write).value)
                for place, cell in enumerate(row.cells)
                if cell.ratio is not None
            ),
        )
        for row in rows
    ]
    groups = [group for group in groups if any(lane.value is not None for lane in group.lanes)]
    if not groups:
        return ""
    with svg.drawing():
        figure = lanes.dots(groups, tick, scale)
        return svg.to_svg(figure, f"chart-{slug}", title, _described(groups))


def _size_chart(analysis: Analysis, rows: Sequence[Row], slug: str, title: str) -> str:
    groups = [
        Group(
            row.metric.title,
            tuple(
                _lane(analysis, cell, place, cell.figure, quantity(cell.figure, row.metric).value)
                for place, cell in enumerate(row.cells)
            ),
        )
        for row in rows
    ]
    values = [lane.value for group in groups for lane in group.lanes if lane.value is not None]
    if not values:
        return ""
    name, size = next(
        ((name, size) for name, size in (("GiB", GIB), ("MiB", MIB)) if max(values) >= size), ("KiB", KIB)
    )
    with svg.drawing():
        figure = lanes.bars([_scaled(group, size) for group in groups], name)
        return svg.to_svg(figure, f"chart-{slug}", title, _described(groups))


def _scaled(group: Group, unit: float) -> Group:
    """Return ``group`` in multiples of ``unit``, so that its ticks are round."""

    def scaled(value: float | None) -> float | None:
        return None if value is None else value / unit

    changed = (
        replace(lane, value=scaled(lane.value), low=scaled(lane.low), high=scaled(lane.high)) for lane in group.lanes
    )
    return Group(group.title, tuple(changed))


def _lane(analysis: Analysis, cell: Cell, place: int, figure: Figure, text: str) -> Lane:
    view = analysis.driver(cell.driver)
    found = figure.estimate
    value, low, high = (found.value, found.low, found.high) if found else (None, None, None)
    return Lane(label(view), _style(place), view.emulated, text, value, low, high)


def _style(place: int) -> int:
    return place % len(svg.DRIVERS)


def _described(groups: Sequence[Group]) -> str:
    """Say the picture in words, for who does not see it."""
    return " ".join(
        f"{group.title + ': ' if group.title else ''}{', '.join(f'{lane.name} {lane.text}' for lane in group.lanes)}."
        for group in groups
    )
