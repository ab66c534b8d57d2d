"""The picture of a slope: what the host's memory was at each number of instances, and the lines fitted to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reports import svg
from reports.canvas import BROKEN, FONT, GAP, LANE, WIDTH, Canvas, Group, Lane, marked
from reports.ticks import linear_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT: Final = 150
LEFT: Final = 46
BELOW: Final = 40


@dataclass(frozen=True)
class Series(Lane):
    """One driver's ``points``, (instances, value), around a line of the slope ``value``, which ``text`` says."""

    points: tuple[tuple[int, float], ...] = ()


def slopes(series: Sequence[Series], unit: str) -> Figure:
    """Draw every series with its line, and below them a key with the slopes; values are in ``unit``."""
    canvas = Canvas([Group("", tuple(series))], top=PLOT + BELOW, foot=0)
    canvas.axes.set_axis_off()
    height = canvas.height
    axes = canvas.figure.add_axes(
        (LEFT / WIDTH, 1 - PLOT / height, (WIDTH - LEFT - GAP) / WIDTH, (PLOT - LANE) / height)
    )
    _scales(axes, series)
    canvas.write(2, LANE / 2, unit, colour=svg.MUTED)
    canvas.write(LEFT, PLOT + 25, "instances that run", colour=svg.MUTED)
    for one, (_, y) in zip(series, canvas.places, strict=True):
        _draw(axes, one)
        canvas.mark(canvas.left + 6, y, one.style, emulated=one.emulated)
    return canvas.figure


def _scales(axes: Axes, series: Sequence[Series]) -> None:
    axes.patch.set_visible(False)
    for side in ("right", "top", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(svg.LINE)
    values = [0.0, *(value for one in series for _, value in one.points)]
    most = max((count for one in series for count, _ in one.points), default=1) or 1
    room = (max(values) - min(values) or 1.0) * 0.06
    low, high = min(values) - room, max(values) + room
    axes.set_xlim(-0.03 * most, 1.03 * most)
    axes.set_ylim(low, high)
    ticks = linear_ticks(low, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    counts = [tick for tick in linear_ticks(0, most) if tick == int(tick)]
    axes.set_xticks(counts, [f"{tick:g}" for tick in counts])
    axes.tick_params(length=3, width=0.8, color=svg.LINE, labelcolor=svg.MUTED, labelsize=FONT - 1, pad=2)
    axes.grid(visible=True, axis="y", color=svg.LINE, linewidth=0.6)


def _draw(axes: Axes, one: Series) -> None:
    if one.value is None or not one.points:
        return
    slope = one.value
    begin = sum(value - slope * count for count, value in one.points) / len(one.points)
    most = max(count for count, _ in one.points)
    dash = BROKEN if one.emulated else "-"
    colour = svg.DRIVERS[one.style]
    axes.plot([0, most], [begin, begin + slope * most], color=colour, linewidth=1.2, linestyle=dash, zorder=2)
    counts, values = zip(*one.points, strict=True)
    axes.plot(counts, values, linestyle="none", clip_on=False, zorder=3, **marked(one.style, one.emulated))
