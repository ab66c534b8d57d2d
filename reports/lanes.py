"""One kind of picture for all charts: groups of lanes, a driver's name left, its figure right, a scale between.

Drawn 340 units wide, so that it is readable at full width on a telephone and two fit side by side on
a screen. A unit is a point of matplotlib's and a pixel of a page that shows the picture unscaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeGuard

from reports import svg
from reports.text import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH: Final = 340
LEFT: Final = 100
RIGHT: Final = 64
TITLE: Final = 17
LANE: Final = 16
GAP: Final = 7
FOOT: Final = 32
LOG_SPAN: Final = 5.0
DRAWABLE: Final = (1e-9, 1e9)
"""A ratio beyond these is written and not drawn: no scale shows it and the others too."""
MARKERS: Final = "osD^vP"
BROKEN: Final = (0, (2, 1.2))
POINTS_PER_INCH: Final = 72
FONT: Final = 10


@dataclass(frozen=True)
class Lane:
    """One driver's figure. ``value`` is ``None`` where it is missing; ``text`` is what stands at the right.

    ``style`` numbers the driver's colour and marker. ``phases`` are the ends of a bar's parts.
    """

    name: str
    style: int
    emulated: bool
    text: str
    value: float | None
    low: float | None = None
    high: float | None = None
    phases: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Group:
    """Lanes below one title."""

    title: str
    lanes: tuple[Lane, ...]


class Canvas:
    """A figure with its one pair of axes; heights count downwards from the top, in units."""

    def __init__(self, groups: Sequence[Group], top: float = 0.0) -> None:
        """Lay out ``groups`` below ``top`` units kept free."""
        from matplotlib.figure import Figure

        self.plot_height = top + sum((TITLE if group.title else 0) + LANE * len(group.lanes) + GAP for group in groups)
        self.height = self.plot_height + FOOT
        self.figure: Figure = Figure(figsize=(WIDTH / POINTS_PER_INCH, self.height / POINTS_PER_INCH))
        self.figure.patch.set_visible(False)
        box = (LEFT / WIDTH, FOOT / self.height, (WIDTH - LEFT - RIGHT) / WIDTH, self.plot_height / self.height)
        self.axes: Axes = self.figure.add_axes(box)
        self.axes.set_ylim(self.plot_height, 0)
        self.axes.patch.set_visible(False)
        self.axes.set_yticks([])
        for side in ("left", "right", "top"):
            self.axes.spines[side].set_visible(False)
        self.axes.spines["bottom"].set_color(svg.LINE)
        y = top
        self.places: list[tuple[Lane, float]] = []
        self.blocks: list[tuple[float, float]] = []
        for group in groups:
            if group.title:
                self.write(0, y + TITLE / 2, shorten(group.title, 50), weight="bold")
                y += TITLE
            self.blocks.append((y, y + LANE * len(group.lanes)))
            self.places.extend((lane, y + LANE * (place + 0.5)) for place, lane in enumerate(group.lanes))
            y += LANE * len(group.lanes) + GAP
        for lane, middle in self.places:
            self.write(6, middle, shorten(lane.name, 17), colour=svg.MUTED)
            self.write(WIDTH - 2, middle, shorten(lane.text, 12), align="right")

    def write(
        self, x: float, y: float, text: str, *, colour: str = svg.INK, align: str = "left", weight: str = "normal"
    ) -> None:
        """Put ``text`` at ``x`` units from the left and ``y`` from the top."""
        self.figure.text(
            x / WIDTH,
            1 - y / self.height,
            text,
            size=FONT,
            color=colour,
            ha=align,
            va="center_baseline",
            weight=weight,
        )

    def scale(self, low: float, high: float, *, log: bool, write: Callable[[float], str], title: str) -> None:
        """Set the horizontal scale from ``low`` to ``high`` with few, round ticks."""
        if log:
            self.axes.set_xscale("log")
        self.axes.set_xlim(low, high)
        ticks = _log_ticks(low, high) if log else _linear_ticks(low, high)
        self.axes.set_xticks(ticks, [write(tick) for tick in ticks])
        self.axes.set_xticks([], minor=True)
        self.axes.tick_params(
            axis="x", length=3, width=0.8, color=svg.LINE, labelcolor=svg.MUTED, labelsize=FONT - 1, pad=2
        )
        for tick in ticks:
            self.rule(tick, svg.LINE, 0.6)
        self.write(LEFT, self.height - 7, title, colour=svg.MUTED)

    def rule(self, at: float, colour: str, width: float) -> None:
        """Draw a vertical line at ``at`` through the lanes, not through their titles."""
        for block in self.blocks:
            self.axes.plot([at, at], block, color=colour, linewidth=width, solid_capstyle="butt", zorder=1)


def dots(groups: Sequence[Group], write: Callable[[float], str], title: str) -> Figure:
    """Draw a dot with its interval for each lane, beside the line of the base at 1."""
    canvas = Canvas(groups)
    ends = [end for lane, _ in canvas.places for end in (lane.value, lane.low, lane.high) if _is_drawable(end)]
    low, high = min([1.0, *ends]), max([1.0, *ends])
    log = high / low > LOG_SPAN
    margin = (high / low) ** 0.06 if log else (high - low or 0.1) * 0.08
    left, right = (low / margin, high * margin) if log else (low - margin, high + margin)
    canvas.scale(left, right, log=log, write=write, title=title)
    canvas.rule(1, svg.INK, 1.2)
    for lane, y in canvas.places:
        if _is_drawable(lane.value):
            _dot(canvas, lane, lane.value, y, (left, right))
    return canvas.figure


def _dot(canvas: Canvas, lane: Lane, value: float, y: float, limits: tuple[float, float]) -> None:
    """Draw one lane; an emulated driver's dot is hollow and its whisker broken: not by colour alone."""
    colour = svg.DRIVERS[lane.style]
    dash = BROKEN if lane.emulated else "-"
    if lane.low is not None and lane.high is not None:
        ends = [max(lane.low, limits[0]), min(lane.high, limits[1])]
        canvas.axes.plot(ends, [y, y], color=colour, linewidth=1.6, linestyle=dash, solid_capstyle="butt", zorder=2)
        for end in ends:
            canvas.axes.plot([end, end], [y - 3, y + 3], color=colour, linewidth=1.2, zorder=2)
    fill = svg.PAPER if lane.emulated else colour
    canvas.axes.plot(value, y, MARKERS[lane.style], markersize=4.6, color=colour, markerfacecolor=fill, zorder=3)


def _is_drawable(value: float | None) -> TypeGuard[float]:
    return value is not None and DRAWABLE[0] <= value <= DRAWABLE[1]


def bars(groups: Sequence[Group], title: str) -> Figure:
    """Draw a bar from nothing to each lane's figure, with its interval."""
    canvas = Canvas(groups)
    _bar_scale(canvas, title)
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


def phases(groups: Sequence[Group], names: Sequence[str], title: str) -> Figure:
    """Draw each lane as a bar of phases one after the other, below a key of their ``names``."""
    canvas = Canvas(groups, top=LANE + GAP)
    _bar_scale(canvas, title)
    x = 6.0
    for place, name in enumerate(names):
        canvas.write(x, LANE / 2, "■", colour=svg.PHASES[place])
        canvas.write(x + 11, LANE / 2, name)
        x += 11 + 6.2 * len(name) + 14
    for lane, y in canvas.places:
        begin = 0.0
        for phase, end in lane.phases:
            canvas.axes.barh(
                y,
                end - begin,
                left=begin,
                height=LANE * 0.6,
                facecolor=svg.PHASES[phase],
                edgecolor=svg.PHASES[phase],
                linewidth=1.0,  # the shortest start is still seen
                zorder=2,
            )
            begin = end
    return canvas.figure


def _bar_scale(canvas: Canvas, title: str) -> None:
    ends = [end for lane, _ in canvas.places for end in (lane.value, lane.high) if end is not None]
    top = max([*ends, 0.0])
    canvas.scale(0, top * 1.04 if top > DRAWABLE[0] else 1.0, log=False, write=lambda tick: f"{tick:g}", title=title)


def _linear_ticks(low: float, high: float) -> list[float]:
    """Return three to five round numbers from ``low`` to ``high``."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [place * step for place in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return at most five numbers from ``low`` to ``high``, in steps of a power of ten or of its parts."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 5:
            return inside
    stride = math.ceil(len(inside) / 5)
    return inside[::-1][::stride][::-1]
