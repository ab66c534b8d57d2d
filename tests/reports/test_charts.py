"""The pictures: what is drawn where, whatever the figures are."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from synthetic_result import synthetic_result

from bench.analysis import analyse
from reports import charts, lanes, svg
from reports.lanes import Group, Lane

CHARTS = (charts.throughput, charts.costs, charts.start, charts.memory, charts.sizes)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_a_chart_stays_inside_its_frame(chart) -> None:
    root = etree.fromstring(chart(analyse(synthetic_result())))
    width, height = map(float, root.get("viewBox").split()[2:])
    assert width == lanes.WIDTH
    for text in root.iter("text"):
        assert 0 <= float(text.get("x")) <= width
        assert 0 <= float(text.get("y")) <= height


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_a_chart_names_every_driver_and_keeps_text_as_text(chart) -> None:
    words = set(etree.fromstring(chart(analyse(synthetic_result()))).itertext())
    assert {"container", "qemu (emulated)"} <= words


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


def _drawn(draw) -> str:
    with svg.drawing():
        return svg.to_svg(draw(), "test", "title", "description")
