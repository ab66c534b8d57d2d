"""Reading and writing JSON without the package ``json``, which is the oracle here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UsageError
from runtimes.ociruntime import documents

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=20,
)


FAULT = "line|nested|is no number"
"""Where it is, or what."""


@given(values)
def test_what_is_written_reads_back(value: object) -> None:
    assert json.loads(documents.dumps(value)) == value
    assert json.loads(documents.pretty(value)) == value
    assert documents.parse(documents.pretty(value)) == value


@given(st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \n\\u"'))
def test_what_json_refuses_is_refused(text: str) -> None:
    try:
        expected = json.loads(text, parse_constant=pytest.fail)
    except (ValueError, RecursionError):
        with pytest.raises(ValueError, match=FAULT):
            documents.parse(text)
    else:
        assert documents.parse(text) == expected


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1 2", "", "  ", "[" * 100_000, '"\t"'])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=FAULT):
        documents.parse(text)


def test_an_error_names_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{\n "a": ,\n}')
    with pytest.raises(UsageError, match=r"config\.json is no JSON: .*line 2, column 7"):
        documents.read(str(tmp_path / "config.json"))


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(documents.MAX_BYTES + 1)
    with pytest.raises(UsageError, match="larger than 16 MiB"):
        documents.read(str(tmp_path / "config.json"))


def test_nobody_waits_for_a_fifo_that_nobody_writes_to(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UsageError, match="is no JSON"):
        documents.read(str(tmp_path / "config.json"))


def test_numbers_keep_their_kind() -> None:
    assert documents.parse("[1, 1.0, 1e400]") == [1, 1.0, math.inf]
    assert [type(each) for each in documents.parse("[1, 1.0]")] == [int, float]


def test_a_document_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    documents.write(str(path), {"a": 1})
    with path.open() as before:
        documents.write(str(path), {"a": 2})
        assert json.load(before) == {"a": 1}
    assert json.loads(path.read_text()) == {"a": 2}
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]
