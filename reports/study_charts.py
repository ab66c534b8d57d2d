"""The pictures of studies: a life's verbs, and the host's memory by the number of instances."""

from __future__ import annotations

from bench.analysis import Analysis
from bench.units import format_bytes
from reports import charts, slopes, strips, svg
from reports.canvas import NAME
from reports.slopes import Series
from reports.ticks import short_seconds
from reports.wording import label


def lifecycle(analysis: Analysis) -> str:
    """Return a mark for every verb of a life and every driver, in seconds."""
    found = [charts.row_lanes(analysis, row) for row in analysis.lifecycle]
    if not found:
        return ""
    with svg.drawing():
        figure = strips.strips(found, short_seconds, "median")
        return svg.to_svg(figure, "chart-lifecycle", "Life cycle", charts.described(found))


def density(analysis: Analysis) -> str:
    """Return the host's memory at each number of instances, with the slopes."""
    drawn = [
        (place, one, one.total.figure.estimate.value)
        for place, one in enumerate(analysis.footprints)
        if one.points and one.total and one.total.figure.estimate
    ]
    if not drawn:
        return ""
    name, size = charts.unit(point.above_base_bytes for _, one, _ in drawn for point in one.points)
    series = [
        Series(
            label(analysis.driver(one.driver), NAME),
            charts.style(place),
            analysis.driver(one.driver).emulated,
            format_bytes(slope),
            slope / size,
            points=tuple((point.instances, point.above_base_bytes / size) for point in one.points),
        )
        for place, one, slope in drawn
    ]
    words = ", ".join(f"{one.name} {one.text}" for one in series)
    with svg.drawing():
        figure = slopes.slopes(series, name)
        return svg.to_svg(figure, "chart-density", "Host memory by the number of instances", f"Slopes: {words}.")
