"""The pictures: what is drawn where, whatever the figures are."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from synthetic_result import synthetic_result
from synthetic_servers import servers_result

from bench.analysis import Analysis, analyse
from reports import canvas, charts, lanes, slopes, start_charts, svg, ticks, timeline
from reports.canvas import Group, Lane
from reports.html import CHARTS
from reports.slopes import Series
from reports.timeline import WayLane


@pytest.fixture(scope="module")
def servers() -> Analysis:
    return analyse(servers_result())


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_a_chart_stays_inside_its_frame(chart, servers: Analysis) -> None:
    root = etree.fromstring(chart(servers))
    width, height = map(float, root.get("viewBox").split()[2:])
    assert width == canvas.WIDTH
    for text in root.iter("text"):
        assert 0 <= float(text.get("x")) <= width
        assert 0 <= float(text.get("y")) <= height


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_a_chart_names_every_driver_with_its_mark_and_keeps_text_as_text(chart, servers: Analysis) -> None:
    words = set(etree.fromstring(chart(servers)).itertext())
    assert {"container", "qemu (emulated)", "qemu-full (emulated)"} <= words
    assert not any(word.startswith(("qemu", "xen")) and "emulated" not in word for word in words)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_a_chart_of_nothing_is_no_chart(chart) -> None:
    empty = replace(synthetic_result(), trials=())
    drivers = tuple(
        replace(one, image_compressed_bytes=None, image_unpacked_bytes=None, image_on_disk_bytes=None)
        for one in empty.header.drivers
    )
    assert chart(analyse(replace(empty, header=replace(empty.header, drivers=drivers)))) == ""


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_the_labels_of_a_scale_do_not_touch(chart, servers: Analysis) -> None:
    root = etree.fromstring(chart(servers))
    labels = [
        (float(text.get("x")), len(text.text))
        for scale in root.iter("g")
        if re.search(r"-matplotlib\.axis_1$", scale.get("id") or "")
        for text in scale.iter("text")
    ]
    assert len(labels) > 1
    # a digit of a nine point sans serif is about 5.5 units wide
    for (left, long), (right, short) in pairwise(sorted(labels)):
        assert right - left > 5.5 * (long + short) / 2


def test_every_driver_of_ten_has_a_colour_and_a_mark_of_its_own() -> None:
    assert len(set(canvas.MARKERS)) == len(canvas.MARKERS) == len(svg.DRIVERS) >= 10


def test_a_way_is_drawn_in_the_phases_it_has() -> None:
    plain = start_charts.start(analyse(synthetic_result(without=("qemu",), failed=())))
    assert plain.count("var(--phase-0)") == 1  # in the key alone: a container has no kernel of its own
    assert start_charts.start(analyse(synthetic_result())).count("var(--phase-0)") > 1


def test_the_first_answer_has_a_mark_only_where_something_answered() -> None:
    assert "first answer" in start_charts.steps(analyse(synthetic_result()))
    silent = replace(synthetic_result(), trials=tuple(replace(one, steps=()) for one in synthetic_result().trials))
    assert "first answer" not in start_charts.steps(analyse(silent))


def test_with_many_drivers_those_without_a_figure_are_left_out_of_the_bars(servers: Analysis) -> None:
    words = list(etree.fromstring(charts.memory(servers)).itertext())
    assert words.count("xen-pv (emulated)") == 1  # what libvirt says, and no PSS
    assert words.count("qemu (emulated)") == 2


def test_there_is_no_ratio_chart_without_a_base() -> None:
    analysis = analyse(synthetic_result(without=("native",)))
    assert charts.throughput(analysis) == ""
    assert charts.costs(analysis) == ""


def test_a_missing_figure_is_a_dash_and_no_mark() -> None:
    groups = [Group("x", (Lane("a", 0, False, "—", None), Lane("b", 1, False, "2×", 2.0, 1.8, 2.2)))]
    assert _drawn(lambda: lanes.dots(groups, str, "x")).count("var(--driver-0)") == 0


def test_what_a_style_or_matplotlibrc_says_changes_nothing() -> None:
    import matplotlib as mpl

    plain = charts.sizes(analyse(synthetic_result()))
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        assert charts.sizes(analyse(synthetic_result())) == plain


POSITIVE = st.floats(0, 1e300)


@settings(max_examples=40, deadline=None)
@given(st.lists(POSITIVE, min_size=1, max_size=4))
def test_any_ratio_can_be_drawn(values: list[float]) -> None:
    groups = [Group("x", tuple(Lane("d", 0, False, "v", value, value * 0.9, value * 1.1) for value in values))]
    picture = _drawn(lambda: lanes.dots(groups, lambda tick: f"{tick:g}", "x"))
    assert "nan" not in re.sub(r">[^<]*<", "", picture)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=4))
def test_any_size_can_be_drawn(values: list[float]) -> None:
    groups = [Group("x", tuple(Lane("d", 0, True, "v", value) for value in values))]
    assert "nan" not in re.sub(r">[^<]*<", "", _drawn(lambda: lanes.bars(groups, "x")))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1e9), min_size=3, max_size=8).map(sorted), st.floats(0, 1e9) | st.none())
def test_any_way_can_be_drawn(times: list[float], answer: float | None) -> None:
    phases = tuple(enumerate(times[-3:]))
    way = WayLane("d", 0, True, "v", times[-1], phases=phases, begins=tuple(times), answer=answer)
    for draw in (timeline.proportional, timeline.logarithmic):
        picture = _drawn(lambda draw=draw: draw([way], ["a", "b", "c"]))
        assert "nan" not in re.sub(r">[^<]*<", "", picture)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.floats(-1e12, 1e12)), min_size=1, max_size=6), st.floats(-1e12, 1e12))
def test_any_slope_can_be_drawn(points: list[tuple[int, float]], slope: float) -> None:
    picture = _drawn(lambda: slopes.slopes([Series("d", 0, False, "v", slope, points=tuple(points))], "MiB"))
    assert "nan" not in re.sub(r">[^<]*<", "", picture)


@given(st.lists(st.floats(0, 200), min_size=1, max_size=12).map(sorted))
def test_labels_are_left_out_until_none_touches_the_next(places: list[float]) -> None:
    kept = ticks.apart(places, lambda _: "10 ms", float)
    assert kept[-1] == places[-1]
    assert all(right - left >= 5 * ticks.CHARACTER for left, right in pairwise(kept))


def _drawn(draw) -> str:
    with svg.drawing():
        return svg.to_svg(draw(), "test", "title", "description")
