"""An analysis as tables: pandas frames, and the CSV files made from them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from bench.analysis import Analysis, Cell, Estimate, Row
from bench.metrics import ANSWER
from reports.text import spreadsheet

if TYPE_CHECKING:
    import pandas as pd

SAMPLE_COLUMNS = (
    "trial", "block", "workload", "driver", "emulated", "metric", "unit", "round", "warmup", "value", "outcome",
)  # fmt: skip
SUMMARY_COLUMNS = (
    "workload", "metric", "unit", "direction", "driver", "emulated", "trials", "value", "low", "high",
    "ratio", "ratio_low", "ratio_high", "missing",
)  # fmt: skip

STEP_COLUMNS = (
    "driver", "emulated", "workload", "mark", "name", "trials", "begin_seconds", "low", "high", "length_seconds",
)  # fmt: skip
FOOTPRINT_COLUMNS = (
    "workload", "driver", "emulated", "role", "line", "metrics", "trials", "bytes", "low", "high", "missing",
)  # fmt: skip


def samples(analysis: Analysis) -> pd.DataFrame:
    """Return every sample, one row each; a trial without samples has one row without a value."""
    import pandas as pd

    frame = pd.DataFrame([asdict(row) for row in analysis.samples], columns=SAMPLE_COLUMNS)
    return frame.astype({"round": "Int64", "value": "Float64"})


def summary(analysis: Analysis) -> pd.DataFrame:
    """Return one row for each metric and driver: median, 95 % interval, ratio to native, or why it is missing."""
    import pandas as pd

    rows = [_summary_row(analysis, row, cell) for row in analysis.rows for cell in row.cells]
    frame = pd.DataFrame(rows, columns=SUMMARY_COLUMNS)
    numbers = ("value", "low", "high", "ratio", "ratio_low", "ratio_high")
    return frame.astype({"trials": "Int64"} | dict.fromkeys(numbers, "Float64"))


def steps(analysis: Analysis) -> pd.DataFrame:
    """Return one row for each event, step and first answer on the way to ready; ``mark`` says which of these it is."""
    import pandas as pd

    rows: list[tuple[object, ...]] = []
    for way in analysis.ways:
        who = (way.driver, analysis.driver(way.driver).emulated)
        for mark in way.marks:
            kind = "event" if mark.is_event else "step"
            begin = mark.begin
            rows.append((*who, way.workload, kind, mark.name, begin.trials, *_numbers(begin), mark.length_seconds))
        for answer in way.answers:
            begin = answer.begin
            rows.append((*who, answer.workload, "answer", ANSWER, begin.trials, *_numbers(begin), None))
    frame = pd.DataFrame(rows, columns=STEP_COLUMNS)
    return frame.astype(dict.fromkeys(("begin_seconds", "low", "high", "length_seconds"), "Float64"))


def footprints(analysis: Analysis) -> pd.DataFrame:
    """Return one row for each line of a driver's reconciled memory; ``role`` is its place in the sum, or beside it."""
    import pandas as pd

    rows: list[tuple[object, ...]] = []
    for one in analysis.footprints:
        who = (one.workload, one.driver, analysis.driver(one.driver).emulated)
        roles = {"total": [one.total], "part": one.parts, "residue": [one.residue], "beside": one.beside}
        for role, lines in roles.items():
            for line in filter(None, lines):
                found = line.figure.estimate
                trials = found.trials if found else None
                names = " ".join(line.metrics)
                rows.append((*who, role, line.name, names, trials, *_numbers(found), line.figure.missing))
        if one.total is None:
            rows.append((*who, "total", "", "", None, *_numbers(None), one.missing))
    frame = pd.DataFrame(rows, columns=FOOTPRINT_COLUMNS)
    return frame.astype({"trials": "Int64"} | dict.fromkeys(("bytes", "low", "high"), "Float64"))


def samples_csv(analysis: Analysis) -> str:
    """Return ``samples`` as CSV (RFC 4180, but with a line feed), an empty field where there is no value."""
    return _csv(samples(analysis))


def summary_csv(analysis: Analysis) -> str:
    """Return ``summary`` as CSV."""
    return _csv(summary(analysis))


def steps_csv(analysis: Analysis) -> str:
    """Return ``steps`` as CSV."""
    return _csv(steps(analysis))


def footprints_csv(analysis: Analysis) -> str:
    """Return ``footprints`` as CSV."""
    return _csv(footprints(analysis))


def _summary_row(analysis: Analysis, row: Row, cell: Cell) -> tuple[object, ...]:
    figure = cell.figure.estimate
    ratio = cell.ratio.estimate if cell.ratio else None
    missing = cell.figure.missing or (cell.ratio.missing if cell.ratio else "")
    emulated = analysis.driver(cell.driver).emulated
    trials = figure.trials if figure else None
    metric = row.metric
    return (
        row.workload, metric.name, metric.unit, metric.direction, cell.driver, emulated, trials,
        *_numbers(figure), *_numbers(ratio), missing,
    )  # fmt: skip


def _numbers(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)


def _csv(frame: pd.DataFrame) -> str:
    texts = frame.select_dtypes(include=["object", "str"]).columns
    harmless = frame.assign(**{name: [spreadsheet(str(text)) for text in frame[name]] for name in texts})
    return harmless.to_csv(index=False, lineterminator="\n")
