"""The Markdown summary and the CSV summary against their golden files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hostile import hostile_result, hostile_servers
from synthetic_result import synthetic_result
from synthetic_servers import servers_result

from bench.analysis import analyse
from reports import markdown, table

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "result", "render"),
    [
        ("report.md", synthetic_result, markdown.render),
        ("summary.csv", synthetic_result, table.summary_csv),
        ("servers.md", servers_result, markdown.render),
        ("servers.csv", servers_result, table.summary_csv),
        ("steps.csv", servers_result, table.steps_csv),
        ("footprints.csv", servers_result, table.footprints_csv),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_report_is_the_golden_one(name: str, result, render) -> None:
    text = render(analyse(result()))
    if os.environ.get("ISOMARK_REGENERATE"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text(), "if the change is meant: ISOMARK_REGENERATE=1 pytest tests/reports"


@pytest.mark.parametrize("result", [hostile_result, hostile_servers])
def test_hostile_text_neither_breaks_a_table_nor_becomes_markup(result) -> None:
    text = markdown.render(analyse(result()))
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


def test_what_a_result_has_nothing_of_is_not_there() -> None:
    small, large = (markdown.render(analyse(result())) for result in (synthetic_result, servers_result))
    for heading in ("reconciled", "Suspend", "\n| Minimum memory |"):
        assert heading not in small
        assert heading in large
