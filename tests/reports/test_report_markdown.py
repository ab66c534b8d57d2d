"""The Markdown summary and the CSV summary against their golden files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hostile import hostile_result
from synthetic_result import synthetic_result

from bench.analysis import analyse
from reports import markdown, table

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "render"), [("report.md", markdown.render), ("summary.csv", table.summary_csv)], ids=["markdown", "csv"]
)
def test_the_report_is_the_golden_one(name: str, render) -> None:
    text = render(analyse(synthetic_result()))
    if os.environ.get("ISOMARK_REGENERATE"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text(), "if the change is meant: ISOMARK_REGENERATE=1 pytest tests/reports"


def test_hostile_text_neither_breaks_a_table_nor_becomes_markup() -> None:
    text = markdown.render(analyse(hostile_result()))
    text.encode()
    prose = re.sub(r"(`{3,})sh\n.*?\n\1", "", text, flags=re.DOTALL)
    assert re.search(r"<(?!br>)", prose) is None
    assert re.search(r"(?<!\\)\[", prose) is None
    assert "http://" not in prose
    widths: dict[int, set[int]] = {}
    block = 0
    for line in prose.splitlines():
        if line.startswith("|"):
            widths.setdefault(block, set()).add(len(re.findall(r"(?<!\\)\|", line)))
        else:
            block += 1
    assert widths
    assert all(len(counts) == 1 for counts in widths.values())


def test_a_command_cannot_leave_its_code_block() -> None:
    text = markdown.render(analyse(hostile_result()))
    assert re.search(r"^(`{3,})sh\nisomark run [^\n]*\n\1$", text, re.MULTILINE)


def test_emulated_figures_are_marked() -> None:
    text = markdown.render(analyse(synthetic_result()))
    assert "| Metric | native | container | qemu (emulated) |" in text
    assert "virtual server (emulated) at" in text
