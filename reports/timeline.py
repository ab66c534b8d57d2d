"""Pictures of the way to ready: one bar for each driver, in phases one after the other, below a key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.metrics import ANSWER
from reports import svg
from reports.canvas import GAP, LANE, Canvas, Group, Lane
from reports.lanes import bar_scale, is_drawable
from reports.ticks import short_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THICKNESS: Final = 0.6 * LANE
WIDEST: Final = 1e6
"""The latest time on a logarithmic scale divided by the earliest."""


@dataclass(frozen=True)
class WayLane(Lane):
    """A driver's way. ``phases`` are the ends of its parts with their number, ``begins`` those of its steps.

    All in seconds since spawned; ``answer`` is the first on the network.
    """

    phases: tuple[tuple[int, float], ...] = ()
    begins: tuple[float, ...] = ()
    answer: float | None = None


def proportional(ways: Sequence[WayLane], names: Sequence[str]) -> Figure:
    """Draw the ways to scale: what is long is seen to be."""
    canvas = Canvas([Group("", tuple(ways))], top=LANE + GAP)
    bar_scale(canvas, "seconds since spawned")
    _key(canvas, names)
    for way, (_, y) in zip(ways, canvas.places, strict=True):
        _bar(canvas, way, y, 0.0, 1.0)  # the shortest start is still seen
    return canvas.figure


def logarithmic(ways: Sequence[WayLane], names: Sequence[str]) -> Figure:
    """Draw the ways on a logarithmic scale, cut where their steps begin: what is short is seen too."""
    canvas = Canvas([Group("", tuple(ways))], top=LANE + GAP)
    times = [time for way in ways for time in (*(end for _, end in way.phases), *way.begins, way.answer)]
    drawn = [time for time in times if is_drawable(time)] or [1.0]
    left, right = max(min(drawn), max(drawn) / WIDEST) / 1.5, max(drawn) * 1.3
    canvas.scale(left, right, log=True, write=short_seconds, title="time since spawned, logarithmic")
    _key(canvas, [*names, *([ANSWER] if any(is_drawable(way.answer) for way in ways) else [])])
    for way, (_, y) in zip(ways, canvas.places, strict=True):
        _bar(canvas, way, y, left, 0.0)
        for begin in way.begins:
            if begin > left:
                ends = [y - THICKNESS / 2, y + THICKNESS / 2]
                canvas.axes.plot([begin, begin], ends, color=svg.PAPER, linewidth=0.8, solid_capstyle="butt", zorder=3)
        if is_drawable(way.answer):
            canvas.axes.plot(way.answer, y, "D", markersize=4.2, color=svg.INK, markerfacecolor=svg.PAPER, zorder=4)
    return canvas.figure


def _bar(canvas: Canvas, way: WayLane, y: float, left: float, edge: float) -> None:
    begin = left
    for phase, end in way.phases:
        if end < begin:
            continue
        colour = svg.PHASES[phase]
        canvas.axes.barh(
            y, end - begin, left=begin, height=THICKNESS, facecolor=colour, edgecolor=colour, linewidth=edge, zorder=2
        )
        begin = end


def _key(canvas: Canvas, names: Sequence[str]) -> None:
    x = 6.0
    for place, name in enumerate(names):
        sign, colour = ("■", svg.PHASES[place]) if place < len(svg.PHASES) else ("◇", svg.INK)
        canvas.write(x, LANE / 2, sign, colour=colour)
        canvas.write(x + 11, LANE / 2, name)
        x += 11 + 6.0 * len(name) + 10
