"""The CSV files: every sample, and one row for every figure."""

from __future__ import annotations

import csv
import io
from functools import cache

import pytest
from hostile import hostile_result, hostile_servers
from synthetic_result import synthetic_result
from synthetic_servers import servers_result

from bench.analysis import Analysis, analyse
from reports import table


@cache
def _servers() -> Analysis:
    return analyse(servers_result())


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


ALL = (table.samples_csv, table.summary_csv, table.steps_csv, table.footprints_csv)


@pytest.mark.parametrize("result", [hostile_result, hostile_servers])
def test_no_field_is_a_formula(result) -> None:
    analysis = analyse(result())
    for write in ALL:
        text = write(analysis)
        text.encode()
        fields = [field for row in csv.reader(io.StringIO(text)) for field in row]
        assert not any(field.startswith(("=", "+", "@", "\t", "\r")) for field in fields)


def test_the_lengths_of_the_steps_of_a_driver_add_up_to_its_start() -> None:
    rows = _rows(table.steps_csv(_servers()))
    for driver in {row["driver"] for row in rows}:
        mine = [row for row in rows if row["driver"] == driver]
        ready = next(row for row in mine if (row["mark"], row["name"]) == ("event", "ready"))
        lengths = [float(row["length_seconds"]) for row in mine if row["length_seconds"]]
        assert sum(lengths) == pytest.approx(float(ready["begin_seconds"]))


def test_parts_and_residue_of_a_footprint_add_up_to_its_total() -> None:
    rows = _rows(table.footprints_csv(_servers()))
    for driver in {row["driver"] for row in rows}:
        mine = [row for row in rows if row["driver"] == driver]
        total = next(float(row["bytes"]) for row in mine if row["role"] == "total")
        parts = [float(row["bytes"]) for row in mine if row["role"] in ("part", "residue") and row["bytes"]]
        assert sum(parts) == pytest.approx(total)


def test_tables_of_what_was_not_measured_have_a_head_and_no_rows() -> None:
    assert table.footprints_csv(analyse(synthetic_result())).count("\n") == 1
