"""The CSV files: every sample, and one row for every figure."""

from __future__ import annotations

import csv
import io

from hostile import hostile_result
from synthetic_result import synthetic_result

from bench.analysis import analyse
from reports import table


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_sample_is_a_row_with_its_exact_value() -> None:
    result = synthetic_result()
    rows = _rows(table.samples_csv(analyse(result)))
    recorded = [(trial.index, sample.metric, sample.value) for trial in result.trials for sample in trial.samples]
    listed = [(int(row["trial"]), row["metric"], float(row["value"])) for row in rows if row["value"]]
    assert listed == recorded


def test_a_failed_trial_is_a_row_without_a_value() -> None:
    rows = [row for row in _rows(table.samples_csv(analyse(synthetic_result()))) if row["outcome"] != "ok"]
    assert [(row["workload"], row["driver"], row["metric"], row["value"]) for row in rows] == [("http", "qemu", "", "")]


def test_the_columns_are_those_promised() -> None:
    header = table.samples_csv(analyse(synthetic_result())).splitlines()[0]
    assert header == "trial,block,workload,driver,emulated,metric,unit,round,warmup,value,outcome"


def test_emulated_stands_in_every_row_of_an_emulated_driver() -> None:
    for text in (table.samples_csv(analyse(synthetic_result())), table.summary_csv(analyse(synthetic_result()))):
        assert {row["emulated"] for row in _rows(text) if row["driver"] == "qemu"} == {"True"}
        assert {row["emulated"] for row in _rows(text) if row["driver"] != "qemu"} == {"False"}


def test_a_missing_figure_is_empty_with_its_reason() -> None:
    rows = _rows(table.summary_csv(analyse(synthetic_result())))
    row = next(row for row in rows if row["metric"] == "memory_cgroup_bytes" and row["driver"] == "native")
    assert (row["value"], row["low"], row["trials"]) == ("", "", "")
    assert row["missing"] == "its trials did not record this metric"


def test_no_field_is_a_formula() -> None:
    analysis = analyse(hostile_result())
    for text in (table.samples_csv(analysis), table.summary_csv(analysis)):
        text.encode()
        fields = [field for row in csv.reader(io.StringIO(text)) for field in row]
        assert not any(field.startswith(("=", "+", "@", "\t", "\r")) for field in fields)
