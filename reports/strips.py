"""A picture of several quantities in one lane each, with a mark for every driver, below a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from reports import svg
from reports.canvas import GAP, LANE, NAME, WIDTH, Canvas, Group, Lane, marked
from reports.lanes import LOG_SPAN, dot_scale, is_drawable
from reports.text import shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: Final = 2


def strips(found: Sequence[Group], write: Callable[[float], str], title: str) -> Figure:
    """Draw every group as one strip, all on one scale; the first has a lane for every driver of the key."""
    drivers = found[0].lanes
    rows = -(-len(drivers) // COLUMNS)
    top = rows * LANE + GAP
    canvas = Canvas([Group("", tuple(Lane(strip.title, 0, False, "", None) for strip in found))], top=top)
    values = [lane.value for strip in found for lane in strip.lanes if is_drawable(lane.value)]
    log = bool(values) and max(values) / min(values) > LOG_SPAN
    dot_scale(canvas, values or [1.0], write, f"{title}, logarithmic" if log else title)
    for place, driver in enumerate(drivers):
        x, y = 10 + (place // rows) * WIDTH / COLUMNS, LANE * (place % rows + 0.5)
        canvas.mark(x, y, driver.style, emulated=driver.emulated)
        canvas.write(x + 9, y, shorten(driver.name, NAME))
    for strip, (_, y) in zip(found, canvas.places, strict=True):
        canvas.axes.axhline(y, color=svg.LINE, linewidth=0.6, zorder=1)
        for lane in strip.lanes:
            if is_drawable(lane.value):
                canvas.axes.plot(lane.value, y, zorder=3, **marked(lane.style, lane.emulated))
    return canvas.figure
