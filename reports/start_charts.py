"""The pictures of the way to ready: to scale, and step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from bench.analysis import Analysis, DriverView, Way
from bench.units import format_seconds
from reports import charts, svg, timeline
from reports.canvas import NAME, Group
from reports.timeline import WayLane
from reports.ways import PHASES
from reports.wording import DASH, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

SHORTEST: Final = 0.015
"""Of the start; what takes less is not seen as a part of its bar."""


def start(analysis: Analysis) -> str:
    """Return the way of each driver from spawned to ready, to scale."""
    return _way_chart(analysis, timeline.proportional, "start", "From spawned to ready")


def steps(analysis: Analysis) -> str:
    """Return the same on a logarithmic scale with every step and the first answer."""
    return _way_chart(analysis, timeline.logarithmic, "steps", "From spawned to ready, step by step")


def _way_chart(
    analysis: Analysis, draw: Callable[[Sequence[WayLane], Sequence[str]], Drawn], slug: str, title: str
) -> str:
    found = [
        _way_lane(analysis.driver(way.driver), charts.style(place), way) for place, way in enumerate(analysis.ways)
    ]
    if all(lane.value is None for lane in found):
        return ""
    with svg.drawing():
        figure = draw(found, [name for _, name in PHASES])
        return svg.to_svg(figure, f"chart-{slug}", title, charts.described([Group("", tuple(found))]))


def _way_lane(view: DriverView, style: int, way: Way) -> WayLane:
    begins = {mark.name: mark.begin.value for mark in way.marks if mark.is_event}
    ready = way.ready.value if way.ready else None
    return WayLane(
        label(view, NAME),
        style,
        view.emulated,
        DASH if ready is None else format_seconds(ready),
        ready,
        phases=tuple((place, begins[name]) for place, (name, _) in enumerate(PHASES) if name in begins),
        begins=tuple(
            line.begin.value for line in way.stretches if (line.length_seconds or 0.0) > SHORTEST * (ready or 0.0)
        ),
        answer=way.answers[0].begin.value if way.answers else None,
    )
