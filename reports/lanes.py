"""Pictures of one figure for each lane: dots beside the base, and bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeGuard

from reports import svg
from reports.canvas import BROKEN, LANE, Canvas, Group, Lane, marked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG_SPAN: Final = 5.0
DRAWABLE: Final = (1e-9, 1e9)
"""A ratio beyond these is written and not drawn: no scale shows it and the others too."""


def dots(groups: Sequence[Group], write: Callable[[float], str], title: str) -> Figure:
    """Draw a dot with its interval for each lane, beside the line of the base at 1."""
    canvas = Canvas(groups)
    limits = dot_scale(canvas, [1.0, *(end for lane, _ in canvas.places for end in ends_of(lane))], write, title)
    canvas.rule(1, svg.INK, 1.2)
    for lane, y in canvas.places:
        if is_drawable(lane.value):
            _dot(canvas, lane, lane.value, y, limits)
    return canvas.figure


def ends_of(lane: Lane) -> list[float]:
    """Return what of a lane's figure and interval can be drawn."""
    return [end for end in (lane.value, lane.low, lane.high) if is_drawable(end)]


def dot_scale(
    canvas: Canvas, values: Sequence[float], write: Callable[[float], str], title: str
) -> tuple[float, float]:
    """Give ``canvas`` a scale that holds ``values``, logarithmic if they differ much, and return its ends."""
    low, high = min(values), max(values)
    log = high / low > LOG_SPAN
    margin = (high / low) ** 0.06 if log else (high - low or 0.1) * 0.08
    left, right = (low / margin, high * margin) if log else (low - margin, high + margin)
    canvas.scale(left, right, log=log, write=write, title=title)
    return left, right


def _dot(canvas: Canvas, lane: Lane, value: float, y: float, limits: tuple[float, float]) -> None:
    """Draw one lane; an emulated driver's whisker is broken."""
    colour = svg.DRIVERS[lane.style]
    dash = BROKEN if lane.emulated else "-"
    if lane.low is not None and lane.high is not None:
        ends = [max(lane.low, limits[0]), min(lane.high, limits[1])]
        canvas.axes.plot(ends, [y, y], color=colour, linewidth=1.6, linestyle=dash, solid_capstyle="butt", zorder=2)
        for end in ends:
            canvas.axes.plot([end, end], [y - 3, y + 3], color=colour, linewidth=1.2, zorder=2)
    canvas.axes.plot(value, y, zorder=3, **marked(lane.style, lane.emulated))


def is_drawable(value: float | None) -> TypeGuard[float]:
    """Whether ``value`` is there and on a scale that shows others too."""
    return value is not None and DRAWABLE[0] <= value <= DRAWABLE[1]


def bars(groups: Sequence[Group], title: str) -> Figure:
    """Draw a bar from nothing to each lane's figure, with its interval."""
    canvas = Canvas(groups)
    bar_scale(canvas, title)
    for lane, y in canvas.places:
        if lane.value is None:
            continue
        colour = svg.DRIVERS[lane.style]
        canvas.axes.barh(
            y,
            lane.value,
            height=LANE * 0.6,
            facecolor=svg.PAPER if lane.emulated else colour,
            edgecolor=colour,
            linewidth=1.2,
            linestyle=BROKEN if lane.emulated else "-",
            zorder=2,
        )
        if lane.low is not None and lane.high is not None and lane.low < lane.high:
            canvas.axes.plot(
                [lane.low, lane.high], [y, y], color=svg.INK, linewidth=1.6, solid_capstyle="butt", zorder=3
            )
    return canvas.figure


def bar_scale(canvas: Canvas, title: str) -> None:
    """Give ``canvas`` a scale from nothing to beyond its longest bar."""
    ends = [end for lane, _ in canvas.places for end in (lane.value, lane.high) if end is not None]
    top = max([*ends, 0.0])
    canvas.scale(0, top * 1.04 if top > DRAWABLE[0] else 1.0, log=False, write=lambda tick: f"{tick:g}", title=title)
