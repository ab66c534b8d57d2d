"""How figures are written, and how strings are made harmless."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_result import synthetic_result

from bench.analysis import Estimate, Figure, analyse
from bench.metrics import BOOT, MEMORY_PSS
from reports import text, wording


def _figure(value: float, low: float, high: float) -> Figure:
    return Figure(Estimate(value, low, high, 5))


def _plain(shown: wording.Shown) -> str:
    return str(shown).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("figure", "metric", "written"),
    [
        (_figure(0.0121, 0.0119, 0.0130), BOOT, "12.1 ms (11.9–13.0)"),
        (_figure(1.05, 0.98, 1.10), BOOT, "1.05 s (980 ms–1.10 s)"),
        (_figure(0.98, 0.97, 1.10), BOOT, "980 ms (970 ms–1.10 s)"),
        (_figure(5e8, 4.9e8, 1.2e9), MEMORY_PSS, "477 MiB (467 MiB–1.12 GiB)"),
    ],
)
def test_an_interval_repeats_a_unit_only_where_it_differs(figure: Figure, metric, written: str) -> None:
    assert _plain(wording.quantity(figure, metric)) == written


def test_a_missing_figure_is_a_dash_and_keeps_its_reason() -> None:
    shown = wording.quantity(Figure(None, "no memory cgroup"), MEMORY_PSS)
    assert (shown.value, shown.interval, shown.why) == ("—", "", "no memory cgroup")


def test_throughput_is_per_cent_of_native_and_cost_a_factor() -> None:
    analysis = analyse(synthetic_result())
    throughput = wording.relative(analysis.throughput[0].cells[1], analysis.throughput[0].metric)
    start = wording.relative(analysis.start[0].cells[2], analysis.start[0].metric)
    assert throughput is not None
    assert throughput.value.endswith("%")
    assert start is not None
    assert start.value.endswith("×")


def test_the_headline_names_a_driver_without_a_figure() -> None:
    failed = tuple(("http", "qemu", block) for block in range(5))
    sentence = wording.headline(analyse(synthetic_result(failed=failed)))[0]
    assert "the container ran at" in sentence
    assert "; the virtual server (emulated) ran at 9." in sentence
    assert sentence.endswith("on cpu, memory and disk, with no figure for http.")


def test_the_headline_of_a_driver_that_never_started_says_so() -> None:
    failed = tuple((workload, "qemu", block) for workload in ("cpu", "memory", "disk", "http") for block in range(5))
    sentence = wording.headline(analyse(synthetic_result(failed=failed)))[0]
    assert sentence.endswith("; the virtual server (emulated) has no throughput.")


def test_the_headline_of_a_bare_process_alone_says_so() -> None:
    sentence = wording.headline(analyse(synthetic_result(without=("container", "qemu"), failed=())))[0]
    assert sentence == "Only the bare process took part, so there is nothing to compare it with."


def test_the_headline_without_a_base_says_so() -> None:
    sentence = wording.headline(analyse(synthetic_result(without=("native",))))[0]
    assert sentence == "No bare process took part, so there is no throughput to compare with."


def test_the_headline_of_hardware_says_nothing_of_emulation() -> None:
    assert "mulated" not in " ".join(wording.headline(analyse(synthetic_result(emulated=False))))


@given(st.text())
def test_cleaned_text_can_be_written_and_changes_no_more(value: str) -> None:
    cleaned = text.clean(value)
    cleaned.encode()
    assert text.clean(cleaned) == cleaned
    assert len(cleaned) == len(value)


@given(st.text(), st.integers(1, 30))
def test_shortened_text_is_one_line_that_fits(value: str, length: int) -> None:
    line = text.shorten(value, length)
    assert len(line) <= length
    assert len(line.splitlines()) <= 1


@given(st.text(alphabet="|\\`*<>&[]()#\n\r x"))
def test_markdown_text_stays_in_its_cell(value: str) -> None:
    import re

    line = text.markdown(value)
    assert "\n" not in line
    assert "<" not in line
    assert all(len(run) % 2 == 1 for run in re.findall(r"(\\*)\|", line))


@given(st.text())
def test_a_spreadsheet_sees_no_formula(value: str) -> None:
    assert not text.spreadsheet(value).startswith(("=", "+", "-", "@"))
