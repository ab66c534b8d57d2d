"""Every sample of a result as the lines of a table, one for each metric of each trial."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from bench.analysis import Analysis, SampleRow


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


def by_workload(analysis: Analysis) -> list[tuple[str, list[SampleLine]]]:
    """Return the lines of each workload that has any."""
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
