from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import SuiteError, UsageError
from bench.suite import find_suite, parse_suite, suite_names

GOOD = """\
name = "mine"
title = "Mine"
workloads = ["boot"]
drivers = ["native", "kvm|qemu"]
trials = 3
[limits]
cpus = 2
memory = "1GiB"
"""


@pytest.mark.parametrize("name", suite_names())
def test_every_shipped_suite_is_well_formed(name: str) -> None:
    suite = find_suite(name)
    assert suite.name == name


def test_a_suite_is_read_with_its_units() -> None:
    suite = parse_suite(GOOD, "mine.toml")
    assert suite.limits.memory_bytes == 2**30
    assert suite.limits.cpus == 2
    assert suite.drivers == (("native",), ("kvm", "qemu"))


def test_every_fault_is_told_with_line_and_key() -> None:
    source = (
        GOOD.replace("trials = 3", "trials = 0\ntrails = 3")
        .replace('"1GiB"', '"much"')
        .replace("cpus = 2", "cpus = true")
    )
    with pytest.raises(SuiteError) as caught:
        parse_suite(source, "mine.toml")
    told = "\n".join(caught.value.faults)
    assert "line 5: trials:" in told
    assert "line 6: trails:" in told
    assert "line 8: limits.cpus:" in told
    assert "line 9: limits.memory:" in told
    assert "512MiB" in told
    assert len(caught.value.faults) == 4


def test_a_missing_key_is_told() -> None:
    with pytest.raises(SuiteError, match="title: Field required"):
        parse_suite(GOOD.replace('title = "Mine"\n', ""), "mine.toml")


def test_broken_toml_is_told_with_its_line() -> None:
    with pytest.raises(SuiteError, match="at line 5"):
        parse_suite(GOOD.replace("trials = 3", "trials = = 3"), "mine.toml")


def test_an_unknown_suite_offers_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        find_suite("quik")
    assert caught.value.hint == "did you mean 'quick'?"


def test_a_suite_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert find_suite(str(path)).name == "mine"


def test_a_suite_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        find_suite(str(tmp_path / "none.toml"))


def test_the_command_line_overrides_the_file() -> None:
    suite = parse_suite(GOOD, "mine.toml").narrowed(drivers=["container"], trials=9, seed=4)
    assert (suite.drivers, suite.trials, suite.seed, suite.workloads) == ((("container",),), 9, 4, ("boot",))


@given(st.text())
def test_any_text_is_a_suite_or_a_suite_error(source: str) -> None:
    with pytest.raises(SuiteError):
        parse_suite(source, "fuzz.toml")
