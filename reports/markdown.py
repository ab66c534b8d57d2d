"""An analysis in GitHub-flavoured Markdown, short enough for the summary of a CI job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.analysis import SIDES, Analysis, Cell, Check, Row
from reports.text import clean, markdown
from reports.wording import DASH, claimed, headline, label, percent, quantity, relative, row_title, shown

MOST_CAUTIONS = 12


def render(analysis: Analysis) -> str:
    """Return the report in Markdown: answer, claims, figures, cautions, and how to repeat it."""
    blocks = [
        f"## isomark: {markdown(analysis.header.suite_title)}",
        f"**{markdown(headline(analysis)[0])}**",
        *map(markdown, headline(analysis)[1:]),
        "### The published table, checked",
        _claims(analysis),
        "### Figures",
        "Median, 95 % interval, and the figure relative to the bare process.",
        _figures(analysis),
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
