"""An analysis as one HTML file: no script, nothing loaded from elsewhere, light and dark, screen and paper."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import jinja2
from markupsafe import Markup

from bench.analysis import METHOD, SIDES, Analysis, Cell, Row, Search, Side, Verdict
from bench.units import format_bytes
from reports import charts, footprints, headline, sampled, start_charts, study_charts, ways, wording
from reports.text import clean
from reports.wording import percent, shown

SYMBOLS: Final = {Verdict.REPRODUCED: "✓", Verdict.REFUTED: "✗", Verdict.UNDEFINED: "?"}
SECTIONS: Final[tuple[tuple[str, str, Callable[[Analysis], object]], ...]] = (
    ("claims", "Published table", lambda analysis: analysis.claims),
    ("throughput", "Throughput", lambda analysis: analysis.throughput or analysis.costs),
    ("start", "Start", lambda analysis: analysis.start or analysis.ways),
    ("lifecycle", "Life cycle", lambda analysis: analysis.lifecycle),
    ("memory", "Memory", lambda analysis: analysis.memory or analysis.minimum or analysis.footprints),
    ("sizes", "Image", lambda analysis: analysis.sizes),
    ("conditions", "Conditions", lambda _: True),
    ("cautions", "Cautions", lambda _: True),
    ("failures", "Failures", lambda _: True),
    ("samples", "Samples", lambda analysis: analysis.samples),
    ("definitions", "Definitions", lambda _: True),
    ("repeat", "Repeat it", lambda _: True),
)
"""Anchor and template, title, and whether the result has any of it."""
CHARTS: Final = (
    charts.throughput,
    charts.costs,
    start_charts.start,
    start_charts.steps,
    study_charts.lifecycle,
    charts.memory,
    study_charts.density,
    charts.minimum,
    charts.sizes,
)
"""Every picture, each empty where the result has nothing of it."""
MANY: Final = 4
"""With more drivers than these a table of them needs a wide screen, and has it for itself."""
KINDS: Final = {"process": "bare process", "container": "container", "vm": "virtual server"}


class Notes:
    """Footnotes of one section, numbered as they are first referred to."""

    def __init__(self, name: str) -> None:
        """Start without any; ``name`` begins their anchors."""
        self.name = name
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        """Return the number of ``text``, which becomes a note if it is none yet."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


@dataclass(frozen=True)
class SideTitle:
    """The heading of a column of the published table; ``short`` stands beside a cell on a narrow screen."""

    short: str
    text: str
    emulated: bool

    @property
    def label(self) -> str:
        """The short heading of our own figures, marked where they are emulated."""
        return f"{self.short} (emulated)" if self.emulated else self.short


def render(analysis: Analysis) -> str:
    """Return the report as an HTML document; equal analyses give equal bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _resource(f"sections/{name}")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalise,
        trim_blocks=False,
    )
    anchors = {(row.workload, row.metric.name): _anchor(place, row) for place, row in enumerate(analysis.rows)}
    many = len(analysis.drivers) > MANY
    template = environment.from_string(_resource("report.html.j2"))
    return template.render(
        analysis=analysis,
        header=analysis.header,
        headline=headline.sentences(analysis),
        css=Markup(_resource("report.css")),
        sections=[(name, title) for name, title, has in SECTIONS if has(analysis)],
        many=" many" if many else "",
        beside="" if many else "pair wide",
        charts={chart.__name__: Markup(chart(analysis)) for chart in CHARTS},
        anchor=lambda row: anchors[row.workload, row.metric.name],
        new_notes=Notes,
        sides=SIDES,
        side_titles=[_side_title(analysis, side) for side in SIDES],
        symbol=SYMBOLS,
        kinds=KINDS,
        ways=[(way, ways.lines(way)) for way in analysis.ways],
        footprints=footprints.groups(analysis),
        attempts=[(search, _attempts(search)) for search in analysis.searches],
        facts=list(_facts(analysis)),
        host=sorted({**analysis.header.identity, **analysis.header.conditions}.items()),
        samples=sampled.by_workload(analysis),
        method=METHOD,
        quantity=wording.quantity,
        relative=lambda row, cell: _relative(analysis, row, cell),
        claimed=wording.claimed,
        label=wording.label,
        row_title=wording.row_title,
        percentage=lambda figure: shown(figure, percent),
        sentence=wording.sentence,
        unbroken=wording.unbroken,
    )


def _finalise(value: object) -> object:
    """Make every string that the template prints harmless; markup of our own passes."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _resource(name: str) -> str:
    return files("reports").joinpath(name).read_text(encoding="utf-8")


def _anchor(place: int, row: Row) -> str:
    name = f"{row.workload}-{row.metric.name}" if row.workload else row.metric.name
    return f"def-{name}" if re.fullmatch(r"[a-z0-9_-]+", name) else f"def-metric-{place}"


def _side_title(analysis: Analysis, side: Side) -> SideTitle:
    emulated = analysis.vm is not None and analysis.driver(analysis.vm).emulated
    match side:
        case "vm":
            return SideTitle("Virtual server", f"Virtual server: {analysis.vm or 'none'}", emulated)
        case "container":
            name = "" if analysis.container == "container" else f": {analysis.container or 'none'}"
            return SideTitle("Container", f"Container{name}", False)
        case "relation":
            return SideTitle("VM ÷ container", "Virtual server ÷ container", emulated)


def _facts(analysis: Analysis) -> Iterator[tuple[str, str]]:
    header = analysis.header
    limits = header.limits
    yield "suite", f"{header.suite_name}: {', '.join(workload.name for workload in header.workloads)}"
    yield (
        "limits",
        f"{limits.cpus} CPU, {format_bytes(limits.memory_bytes)} memory, {format_bytes(limits.disk_bytes)} disk, "
        f"{limits.pids} processes",
    )
    yield "trials", f"{header.trials_per_case} a case, in randomised complete blocks, seed {header.seed}"
    yield "rounds", f"{header.rounds} after {header.warmup_rounds} of warm-up, {header.round_seconds:g} s each"
    yield "image", header.image_reference
    yield "digest", header.image_digest
    yield "isomark", header.isomark_version


def _attempts(search: Search) -> str:
    tries = (f"{format_bytes(attempt.limit_bytes)} {'✓' if attempt.completed else '✗'}" for attempt in search.attempts)
    return ", ".join(map(wording.unbroken, tries))


def _relative(analysis: Analysis, row: Row, cell: Cell) -> wording.Shown | None:
    """Return a cell's quotient by the base, unless one of the two is missing, which its own cell says already."""
    base = next((other for other in row.cells if other.driver == analysis.base), None)
    known = base is not None and base.figure.estimate is not None and cell.figure.estimate is not None
    return wording.relative(cell, row.metric) if known else None
