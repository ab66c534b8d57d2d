"""How figures are written, and how strings are made harmless."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_result import synthetic_result
from synthetic_servers import servers_result

from bench.analysis import Analysis, Estimate, Figure, analyse
from bench.metrics import BOOT, MEMORY_PSS
from bench.model import Case
from reports import headline, text, wording


@cache
def _servers() -> Analysis:
    return analyse(servers_result())


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
    sentence = headline.sentences(analyse(synthetic_result(failed=failed)))[0]
    assert "the container ran at" in sentence
    assert "; the virtual server (emulated) ran at 9." in sentence
    assert sentence.endswith("on cpu, memory and disk, with no figure for http.")


def test_the_headline_of_a_driver_that_never_started_says_so() -> None:
    failed = tuple((workload, "qemu", block) for workload in ("cpu", "memory", "disk", "http") for block in range(5))
    sentence = headline.sentences(analyse(synthetic_result(failed=failed)))[0]
    assert sentence.endswith("; the virtual server (emulated) has no throughput.")


def test_the_headline_of_a_bare_process_alone_says_so() -> None:
    sentence = headline.sentences(analyse(synthetic_result(without=("container", "qemu"), failed=())))[0]
    assert sentence == "Only the bare process took part, so there is nothing to compare it with."


def test_the_headline_without_a_base_says_so() -> None:
    sentence = headline.sentences(analyse(synthetic_result(without=("native",))))[0]
    assert sentence == "No bare process took part, so there is no throughput to compare with."


def test_the_headline_of_hardware_says_nothing_of_emulation() -> None:
    assert "mulated" not in " ".join(headline.sentences(analyse(synthetic_result(emulated=False))))


def test_many_virtual_servers_are_one_party_with_a_range() -> None:
    first, second, *_ = headline.sentences(_servers())
    assert re.fullmatch(
        r"Against a bare process, the container ran at [\d.]+ % and the 6 emulated virtual servers at [\d.]+ % to "
        r"[\d.]+ % of its throughput \(http\)\.",
        first.replace("\N{NO-BREAK SPACE}", " "),
    )
    assert "6 emulated virtual servers 1.86" in second
    assert not any(name in first + second for name in ("xen-hvm", "qemu-full"))


def test_a_range_says_how_many_have_a_figure() -> None:
    memory = headline.sentences(_servers())[2]
    assert memory.startswith("Host memory of an idle instance")
    assert memory.endswith("(3 of them).")


def test_of_many_the_headline_counts_those_without_a_mean() -> None:
    result = servers_result()
    trials = tuple(trial for trial in result.trials if trial.case != Case("http", "xen-pv"))
    sentence = headline.sentences(analyse(replace(result, trials=trials)))[0]
    assert sentence.endswith("; 1 of them has no figure for some workload.")


def test_a_suite_without_throughput_says_so() -> None:
    result = servers_result()
    workloads = tuple(one for one in result.header.workloads if one.name != "http")
    trials = tuple(trial for trial in result.trials if trial.case.workload != "http")
    analysis = analyse(replace(result, header=replace(result.header, workloads=workloads), trials=trials))
    assert headline.sentences(analysis)[0].startswith("No workload had a throughput")


def test_a_name_that_is_too_long_never_loses_the_mark_of_emulation() -> None:
    view = next(view for view in analyse(synthetic_result()).drivers if view.emulated)
    long = replace(view, record=replace(view.record, name="qemu-with-a-very-long-name"))
    assert wording.label(long, 22) == "qemu-with-… (emulated)"


@pytest.mark.parametrize(
    ("ends", "written"),
    [((1024.0, 4096.0), "+2.00 KiB (+1.00 to +4.00)"), ((-512.0, 4096.0), "+2.00 KiB (-512 B to +4.00 KiB)")],
)
def test_a_residue_has_its_sign(ends: tuple[float, float], written: str) -> None:
    shown = wording.shown(Figure(Estimate(2048.0, *ends, 3)), wording.signed)
    assert _plain(shown) == written


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
    line = text.markdown(value)
    assert "\n" not in line
    assert "<" not in line
    assert all(len(run) % 2 == 1 for run in re.findall(r"(\\*)\|", line))


@given(st.text())
def test_a_spreadsheet_sees_no_formula(value: str) -> None:
    assert not text.spreadsheet(value).startswith(("=", "+", "-", "@"))
