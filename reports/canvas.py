"""The canvas of most pictures: groups of lanes, a name left, a figure right, a scale between.

Drawn 340 units wide, so that it is readable at full width on a telephone and two fit side by side on
a screen. A unit is a point of matplotlib's and a pixel of a page that shows the picture unscaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from reports import svg
from reports.text import shorten
from reports.ticks import apart, linear_ticks, log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH: Final = 340
LEFT: Final = (64, 130)
"""What the longest name may take, at least and at most."""
CHARACTER: Final = 5.6
NAME: Final = 22
RIGHT: Final = 64
TITLE: Final = 17
LANE: Final = 16
GAP: Final = 7
FOOT: Final = 32
MARKERS: Final = "osD^vP<>Xp"
BROKEN: Final = (0, (2, 1.2))
POINTS_PER_INCH: Final = 72
FONT: Final = 10


@dataclass(frozen=True)
class Lane:
    """One driver's figure. ``value`` is ``None`` where it is missing; ``text`` is what stands at the right.

    ``style`` numbers the driver's colour and marker. ``name`` is as shown, marked where it is emulated.
    """

    name: str
    style: int
    emulated: bool
    text: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Group:
    """Lanes below one title."""

    title: str
    lanes: tuple[Lane, ...]


def marked(style: int, emulated: bool) -> dict[str, Any]:
    """Return how matplotlib draws the mark of a driver: hollow where it is emulated, so not by colour alone."""
    colour = svg.DRIVERS[style]
    fill = svg.PAPER if emulated else colour
    return {"marker": MARKERS[style], "markersize": 4.6, "color": colour, "markerfacecolor": fill}


class Canvas:
    """A figure with its one pair of axes; heights count downwards from the top, in units."""

    def __init__(self, groups: Sequence[Group], top: float = 0.0, foot: float = FOOT) -> None:
        """Lay out ``groups`` below ``top`` units kept free, and above ``foot`` units for the scale."""
        from matplotlib.figure import Figure

        names = [len(shorten(lane.name, NAME)) for group in groups for lane in group.lanes]
        self.left = min(max(LEFT[0], 14 + CHARACTER * max(names, default=0)), LEFT[1])
        self.plot_height = top + sum((TITLE if group.title else 0) + LANE * len(group.lanes) + GAP for group in groups)
        self.height = self.plot_height + foot
        self.figure: Figure = Figure(figsize=(WIDTH / POINTS_PER_INCH, self.height / POINTS_PER_INCH))
        self.figure.patch.set_visible(False)
        right = RIGHT if any(lane.text for group in groups for lane in group.lanes) else 2 * GAP
        self.width = WIDTH - self.left - right
        box = (self.left / WIDTH, foot / self.height, self.width / WIDTH, self.plot_height / self.height)
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
            self.write(6, middle, shorten(lane.name, NAME), colour=svg.MUTED)
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
        measure = math.log10 if log else float

        def place(tick: float) -> float:
            return self.width * (measure(tick) - measure(low)) / (measure(high) - measure(low))

        ticks = apart(log_ticks(low, high) if log else linear_ticks(low, high), write, place)
        self.axes.set_xticks(ticks, [write(tick) for tick in ticks])
        self.axes.set_xticks([], minor=True)
        self.axes.tick_params(
            axis="x", length=3, width=0.8, color=svg.LINE, labelcolor=svg.MUTED, labelsize=FONT - 1, pad=2
        )
        for tick in ticks:
            self.rule(tick, svg.LINE, 0.6)
        self.write(self.left, self.height - 7, title, colour=svg.MUTED)

    def rule(self, at: float, colour: str, width: float) -> None:
        """Draw a vertical line at ``at`` through the lanes, not through their titles."""
        for block in self.blocks:
            self.axes.plot([at, at], block, color=colour, linewidth=width, solid_capstyle="butt", zorder=1)

    def mark(self, x: float, y: float, style: int, *, emulated: bool) -> None:
        """Draw a driver's mark at ``x`` units from the left and ``y`` from the top, for a key."""
        from matplotlib.lines import Line2D

        at = ([x / WIDTH], [1 - y / self.height])
        self.figure.add_artist(
            Line2D(*at, transform=self.figure.transFigure, linestyle="none", **marked(style, emulated))
        )
