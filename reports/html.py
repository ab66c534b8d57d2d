"""An analysis as one HTML file: no script, nothing loaded from elsewhere, light and dark, screen and paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from typing import Final

import jinja2
from markupsafe import Markup

from bench.analysis import METHOD, SIDES, Analysis, Row, SampleRow, Side, Verdict
from bench.units import format_bytes, format_seconds
from reports import charts, wording
from reports.text import clean
from reports.wording import percent, shown

SYMBOLS: Final = {Verdict.REPRODUCED: "✓", Verdict.REFUTED: "✗", Verdict.UNDEFINED: "?"}
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


@dataclass(frozen=True)
class SampleLine:
    """The values of one metric of one trial, in the order recorded."""

    trial: int
    block: int
    driver: str
    emulated: bool
    metric: str
    values: str
    outcome: str


def render(analysis: Analysis) -> str:
    """Return the report as an HTML document; equal analyses give equal bytes."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalise,
        trim_blocks=False,
    )
    anchors = {(row.workload, row.metric.name): _anchor(place, row) for place, row in enumerate(analysis.rows)}
    template = environment.from_string(_resource("report.html.j2"))
    return template.render(
        analysis=analysis,
        header=analysis.header,
        headline=wording.headline(analysis),
        css=Markup(_resource("report.css")),
        charts={
            chart.__name__: Markup(chart(analysis))
            for chart in (charts.throughput, charts.costs, charts.start, charts.memory, charts.sizes)
        },
        anchor=lambda row: anchors[row.workload, row.metric.name],
        new_notes=Notes,
        sides=SIDES,
        side_titles=[_side_title(analysis, side) for side in SIDES],
        symbol=SYMBOLS,
        kinds=KINDS,
        events=[name for name, _ in charts.PHASES],
        facts=list(_facts(analysis)),
        host=sorted({**analysis.header.identity, **analysis.header.conditions}.items()),
        samples=_samples(analysis),
        method=METHOD,
        quantity=wording.quantity,
        relative=wording.relative,
        claimed=wording.claimed,
        label=wording.label,
        row_title=wording.row_title,
        percentage=lambda figure: shown(figure, percent),
        seconds=format_seconds,
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


def _samples(analysis: Analysis) -> list[tuple[str, list[SampleLine]]]:
    """Group the samples by workload, one line for each metric of each trial."""
    lines: dict[str, list[SampleLine]] = {workload.name: [] for workload in analysis.header.workloads}
    for (_, workload, metric), group in groupby(
        sorted(analysis.samples, key=lambda row: (row.trial, row.workload, row.metric)),
        key=lambda row: (row.trial, row.workload, row.metric),
    ):
        rows = list(group)
        first = rows[0]
        values = ", ".join(_value(row) for row in rows if row.value is not None)
        named = f"{metric}, {first.unit}" if first.unit else metric
        lines.setdefault(workload, []).append(
            SampleLine(first.trial, first.block, first.driver, first.emulated, named, values, first.outcome)
        )
    return [(name, found) for name, found in lines.items() if found]


def _value(row: SampleRow) -> str:
    return f"[{row.value:.6g}]" if row.warmup else f"{row.value:.6g}"
