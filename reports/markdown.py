"""An analysis in GitHub-flavoured Markdown, short enough for the summary of a CI job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.analysis import SIDES, Analysis, Cell, Check, Estimate, Figure, Row
from bench.metrics import ANSWER
from bench.units import format_seconds
from reports import footprints
from reports.headline import sentences
from reports.text import clean, markdown
from reports.ways import PHASES
from reports.wording import DASH, claimed, label, percent, quantity, relative, row_title, shown

MOST_CAUTIONS = 12


def render(analysis: Analysis) -> str:
    """Return the report in Markdown: answer, claims, figures, cautions, and how to repeat it."""
    blocks = [
        f"## isomark: {markdown(analysis.header.suite_title)}",
        f"**{markdown(sentences(analysis)[0])}**",
        *map(markdown, sentences(analysis)[1:]),
        "### The published table, checked",
        _claims(analysis),
        "### Figures",
        "Median, 95 % interval, and the figure relative to the bare process.",
        _figures(analysis),
        *_ways(analysis),
        *_footprints(analysis),
        *_cautions(analysis),
        "### Repeat it",
        _fenced(analysis.repeat_command),
        f"Image digest {markdown(analysis.header.image_digest)}, result {markdown(analysis.header.result_id)}.",
    ]
    return "\n\n".join(blocks) + "\n"


def _claims(analysis: Analysis) -> str:
    rows = [["Claim", "Definition", "Virtual server", "Container", "VM ÷ container"]]
    for checked in analysis.claims:
        published = [f"*{markdown(checked.claim.published[side].text)}*" for side in SIDES]
        rows.append([f"**{markdown(checked.claim.title)}**", "*published*", *published])
        rows.extend(
            ["", markdown(reading.definition.title), *map(_check, reading.checks)] for reading in checked.readings
        )
    return _table(rows)


def _check(check: Check | None) -> str:
    if check is None:
        return ""
    mark = " (emulated)" if check.emulated and check.figure.estimate else ""
    verdict = str(check.judgement.verdict)
    words = f"{verdict}, {check.judgement.brief}" if check.judgement.brief else verdict
    return f"{markdown(claimed(check).value)}{mark}: {words}"


def _figures(analysis: Analysis) -> str:
    rows = [["Metric", *(markdown(label(view)) for view in analysis.drivers)]]
    rows.extend([markdown(row_title(row)), *(_cell(row, cell) for cell in row.cells)] for row in analysis.rows)
    mean = ["100 %" if view.is_base else markdown(str(shown(view.performance, percent))) for view in analysis.drivers]
    rows.append(["**Mean performance**", *mean])
    return _table(rows)


def _ways(analysis: Analysis) -> Iterator[str]:
    """The way to ready: when each phase ends; every step is in the other reports."""
    if not any(way.marks for way in analysis.ways):
        return
    yield "### Step by step"
    yield "Median time since spawned; every step is in report.html and steps.csv."
    rows = [["Driver", *(name for name, _ in PHASES), ANSWER]]
    for way in analysis.ways:
        at = {mark.name: mark.begin for mark in way.marks if mark.is_event}
        answers = [f"{_seconds(answer.begin)} ({markdown(answer.workload)})" for answer in way.answers]
        events = [_seconds(at.get(name)) for name, _ in PHASES]
        rows.append([markdown(label(analysis.driver(way.driver))), *events, ", ".join(answers) or DASH])
    yield _table(rows)


def _seconds(estimate: Estimate | None) -> str:
    return DASH if estimate is None else markdown(str(shown(Figure(estimate), format_seconds)))


def _footprints(analysis: Analysis) -> Iterator[str]:
    groups = footprints.groups(analysis)
    if not groups:
        return
    yield "### One more idle instance's memory, reconciled"
    yield "Slope over their number, with its 95 % interval; what stands after the residue is no part of the sum."
    rows = [["Memory", *(markdown(label(view)) for view in analysis.drivers)]]
    for line in (line for group in groups for line in group.lines):
        name = f"**{markdown(line.name)}**" if line.is_sum else markdown(line.name)
        rows.append([name, *(markdown(str(cell)) if cell else "" for cell in line.cells)])
    yield _table(rows)


def _cell(row: Row, cell: Cell) -> str:
    text = quantity(cell.figure, row.metric)
    if text.why:
        return DASH
    ratio = relative(cell, row.metric)
    return markdown(str(text)) + (f"<br>{markdown(str(ratio))}" if ratio and not ratio.why else "")


def _cautions(analysis: Analysis) -> Iterator[str]:
    if not analysis.cautions:
        return
    yield "### Cautions"
    lines = [
        f"- **{markdown(caution.severity)}: {markdown(caution.subject)}.** {markdown(caution.message)}"
        + (f" Remedy: {markdown(caution.remedy)}" if caution.remedy else "")
        for caution in analysis.cautions[:MOST_CAUTIONS]
    ]
    left = len(analysis.cautions) - MOST_CAUTIONS
    yield "\n".join([*lines, *([f"- and {left} more in report.html"] if left > 0 else [])])


def _fenced(command: str) -> str:
    line = " ".join(clean(command).split())
    fence = "```"
    while fence in line:
        fence += "`"
    return f"{fence}sh\n{line}\n{fence}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])
