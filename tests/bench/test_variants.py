"""Variants: one suite compares the same driver with different options, each under a name of its own."""

from __future__ import annotations

import pytest

from bench.conduct import require_cases
from bench.driver import Lab
from bench.drivers import choose_drivers, require_drivers
from bench.errors import OptionsError, SuiteError, UsageError
from bench.suite import Configuration, Suite, find_suite, parse_suite

SUITE = """\
name = "mine"
title = "Mine"
workloads = ["boot"]
drivers = ["native", "bare"]
trials = 1
[options.bare]
driver = "native"
"""


def suite(text: str = SUITE) -> Suite:
    return parse_suite(text, "mine.toml")


def test_a_table_with_driver_makes_a_driver_of_that_name(lab: Lab) -> None:
    mine = suite()
    assert mine.configurations == {"bare": Configuration("native")}
    chosen = choose_drivers(mine.drivers, lab, mine.configurations)
    try:
        assert [driver.name for driver in chosen.drivers] == ["native", "bare"]
        assert {driver.kind for driver in chosen.drivers} == {"process"}
    finally:
        chosen.close()


def test_a_table_without_driver_configures_the_driver_itself() -> None:
    mine = suite(SUITE.replace("[options.bare]\ndriver", "[options.qemu]\ncache"))
    assert mine.configurations == {"qemu": Configuration("qemu", {"cache": "native"})}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (SUITE.replace('driver = "native"', 'driver = "nonesuch"'), "line 7: options.bare.driver: there is no driver"),
        (SUITE.replace("[options.bare]\ndriver", "[options.qmeu]\ncache"), "options.qmeu: there is no driver 'qmeu'"),
        (SUITE.replace("bare", "qemu"), "line 7: options.qemu.driver: qemu is a driver itself"),
    ],
)
def test_a_wrong_variant_is_told_with_its_line(text: str, fault: str) -> None:
    mine = suite(text)
    with pytest.raises(OptionsError) as caught:
        require_drivers(["native"], mine.configurations)
    assert any(fault in told for told in mine.refused(caught.value).faults)


def test_a_variant_of_no_name_is_told_when_the_suite_is_read() -> None:
    with pytest.raises(SuiteError) as caught:
        suite(SUITE.replace('driver = "native"', "driver = 3"))
    assert "names the driver that bare is a variant of" in str(caught.value.faults)


def test_the_nearest_name_is_offered_among_variants_too() -> None:
    with pytest.raises(UsageError) as caught:
        require_drivers(["bar"], suite().configurations)
    assert caught.value.hint == "did you mean 'bare'?"


def test_the_shipped_suite_of_virtual_servers_names_only_drivers_that_there_are() -> None:
    shipped = find_suite("vms")
    require_drivers([name for choice in shipped.drivers for name in choice], shipped.configurations)


def test_a_suite_leaves_cases_out() -> None:
    text = SUITE.replace('["boot"]', '["boot", "cpu"]').replace("trials = 1", 'trials = 1\nwithout = ["cpu/bare"]')
    cases = suite(text).cases(["native", "bare"])
    assert list(map(str, cases)) == ["boot/native", "boot/bare", "cpu/native"]


@pytest.mark.parametrize("case", ["cpu/native", "boot/qemu", "boot"])
def test_what_is_left_out_must_be_there(case: str) -> None:
    with pytest.raises(SuiteError, match="malformed"):
        suite(SUITE.replace("trials = 1", f'trials = 1\nwithout = ["{case}"]'))


def test_a_suite_that_leaves_all_out_is_refused_before_anything_is_made(lab: Lab) -> None:
    mine = suite(SUITE.replace("trials = 1", 'trials = 1\nwithout = ["boot/native", "boot/bare"]'))
    chosen = choose_drivers(mine.drivers, lab, mine.configurations)
    try:
        with pytest.raises(UsageError, match="leaves out all that is asked for: boot/native, boot/bare"):
            require_cases(mine, chosen)
    finally:
        chosen.close()
