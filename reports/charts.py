"""The pictures of a report: what stands in their lanes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from bench import metrics
from bench.analysis import Analysis, Cell, Figure, Row
from bench.units import GIB, KIB, MIB
from reports import lanes, strips, svg
from reports.canvas import NAME, Group, Lane
from reports.wording import label, percent, quantity, row_title, shown, times

FEW: Final = 4
"""With more drivers than these a picture leaves out those without a figure; the table has them."""


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
        lambda ratio: f"{ratio:,g}×",
    )


def memory(analysis: Analysis) -> str:
    """Return bars of what an idle instance costs the host."""
    return _size_chart(analysis, analysis.memory, "memory", "Host memory of an idle instance")


def sizes(analysis: Analysis) -> str:
    """Return the image's sizes: bars, or marks on a logarithmic scale where there are many drivers."""
    if len(analysis.drivers) <= FEW:
        # how large the disk seems is chosen, and would make all else small
        shown_rows = [row for row in analysis.sizes if row.metric != metrics.IMAGE_VIRTUAL]
        return _size_chart(analysis, shown_rows, "sizes", "Image size")
    found = [_scaled(row_lanes(analysis, row), MIB) for row in analysis.sizes]
    found = [replace(one, title=one.title.removeprefix("Image, ")) for one in found]
    if not found:
        return ""
    with svg.drawing():
        figure = strips.strips(found, lambda tick: f"{tick:,g}", "MiB")
        return svg.to_svg(figure, "chart-sizes", "Image size", described(found))


def minimum(analysis: Analysis) -> str:
    """Return bars of the least memory that an instance needs."""
    rows = [row for row in analysis.minimum if row.metric == metrics.MINIMUM_MEMORY]
    return _size_chart(analysis, rows, "minimum", "Minimum memory")


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
                lane(analysis, cell, place, cell.ratio, shown(cell.ratio, write).value)
                for place, cell in enumerate(row.cells)
                if cell.ratio is not None and (cell.ratio.estimate is not None or len(row.cells) <= FEW)
            ),
        )
        for row in rows
    ]
    groups = [group for group in groups if any(lane.value is not None for lane in group.lanes)]
    if not groups:
        return ""
    with svg.drawing():
        figure = lanes.dots(groups, tick, scale)
        return svg.to_svg(figure, f"chart-{slug}", title, described(groups))


def _size_chart(analysis: Analysis, rows: Sequence[Row], slug: str, title: str) -> str:
    groups = [_without_gaps(row_lanes(analysis, row)) for row in rows]
    values = [lane.value for group in groups for lane in group.lanes if lane.value is not None]
    if not values:
        return ""
    name, size = unit(values)
    with svg.drawing():
        figure = lanes.bars([_scaled(group, size) for group in groups], name)
        return svg.to_svg(figure, f"chart-{slug}", title, described(groups))


def unit(values: Iterable[float]) -> tuple[str, float]:
    """Return the unit that the largest of ``values`` is some of, with its bytes."""
    most = max(values)
    return next(((name, size) for name, size in (("GiB", GIB), ("MiB", MIB)) if most >= size), ("KiB", KIB))


def _scaled(group: Group, unit: float) -> Group:
    """Return ``group`` in multiples of ``unit``, so that its ticks are round."""

    def scaled(value: float | None) -> float | None:
        return None if value is None else value / unit

    changed = (
        replace(lane, value=scaled(lane.value), low=scaled(lane.low), high=scaled(lane.high)) for lane in group.lanes
    )
    return Group(group.title, tuple(changed))


def row_lanes(analysis: Analysis, row: Row) -> Group:
    """Return the lanes of a row, one for each driver."""
    lanes_of = (
        lane(analysis, cell, place, cell.figure, quantity(cell.figure, row.metric).value)
        for place, cell in enumerate(row.cells)
    )
    return Group(row.metric.title, tuple(lanes_of))


def _without_gaps(found: Group) -> Group:
    """Leave out drivers without a figure where there are many."""
    known = tuple(one for one in found.lanes if one.value is not None or len(found.lanes) <= FEW)
    return Group(found.title, known)


def lane(analysis: Analysis, cell: Cell, place: int, figure: Figure, text: str) -> Lane:
    """Return the lane of a cell's ``figure``; ``place`` is its driver's among all."""
    view = analysis.driver(cell.driver)
    found = figure.estimate
    value, low, high = (found.value, found.low, found.high) if found else (None, None, None)
    return Lane(label(view, NAME), style(place), view.emulated, text, value, low, high)


def style(place: int) -> int:
    """Return which colour and mark the driver at ``place`` has."""
    return place % len(svg.DRIVERS)


def described(groups: Sequence[Group]) -> str:
    """Say the picture in words, for who does not see it."""
    return " ".join(
        f"{group.title + ': ' if group.title else ''}{', '.join(f'{lane.name} {lane.text}' for lane in group.lanes)}."
        for group in groups
    )
