"""Options of virtual servers: what a suite may say, and what it is told when that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.driver import Configurable, Lab
from bench.drivers import choose_drivers, load_driver
from bench.errors import OptionsError
from bench.lab import open_lab
from bench.suite import parse_suite
from vms.options import DEFAULTS, DomainOptions, parse_options

SUITE = """\
name = "mine"
title = "mine"
workloads = ["boot"]
drivers = ["native", "qemu"]
trials = 1

[options.qemu]
cache = "nonesuch"
colour = "blue"
sockets = -1

[options.native]
cache = "none"
"""


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    with open_lab(tmp_path / "state") as opened:
        return opened


def test_no_options_are_the_defaults() -> None:
    assert parse_options({}) == DEFAULTS == DomainOptions()
    assert DEFAULTS.faults() == []


def test_every_option_is_explained() -> None:
    assert DomainOptions.__doc__ is not None
    missing = [name for name in vars(DEFAULTS) if name not in DomainOptions.__doc__]
    assert missing == []


def test_options_arrive_as_they_are_written() -> None:
    table = {"cache": "none", "io": "native", "pin": ["0", "1-2"], "iothreads": 1, "virtiofs": "/srv"}
    assert parse_options(table) == DomainOptions(
        cache="none", io="native", pin=("0", "1-2"), iothreads=1, virtiofs=Path("/srv")
    )


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"colour": "blue"}, "colour"),
        ({"cache": "nonesuch"}, "cache"),
        ({"io": "native"}, "io"),
        ({"free_page_reporting": True}, "free_page_reporting"),
        ({"firmware": "bios"}, "firmware"),
        ({"guest": "full"}, "firmware"),
        ({"disk_bus": "sata"}, "disk_bus"),
        ({"network_model": "e1000"}, "network_model"),
        ({"network": "bridge:"}, "network"),
        ({"network": "somewhere"}, "network"),
        ({"virtiofs": "srv"}, "virtiofs"),
        ({"iothreads": 65}, "iothreads"),
        ({"threads": -1}, "sockets"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(table: dict[str, object], key: str) -> None:
    with pytest.raises(OptionsError) as caught:
        parse_options(table)
    assert [fault[0] for fault in caught.value.faults] == [key]


def test_xen_refuses_what_it_has_nothing_for(lab: Lab) -> None:
    driver = load_driver("xen-pv", lab)
    assert isinstance(driver, Configurable)
    with pytest.raises(OptionsError, match=r"cache: .*; iothreads: "):
        driver.configured({"cache": "none", "iothreads": 2})
    driver.configured({"network": "bridge:xenbr0"}).close()


def test_a_driver_of_others_takes_no_options(lab: Lab) -> None:
    assert not isinstance(load_driver("native", lab), Configurable)
    with pytest.raises(OptionsError, match="native takes no options"):
        load_driver("native", lab, {"cache": "none"})


def test_every_fault_of_a_suite_s_options_is_told_with_its_line(lab: Lab) -> None:
    suite = parse_suite(SUITE, "mine.toml")
    with pytest.raises(OptionsError) as caught:
        choose_drivers(suite.drivers, lab, suite.options)
    told = suite.refused(caught.value)
    assert [fault.partition(": ")[0] for fault in told.faults] == ["line 13", "line 8", "line 9"]
    assert "options.qemu.cache" in told.faults[1]
    assert "options.native.cache" in told.faults[0]


def test_options_reach_the_domain_and_the_record(lab: Lab) -> None:
    driver = load_driver("qemu", lab, {"cache": "none", "io": "native"})
    from bench.driver import Launch
    from bench.model import Limits

    xml = driver.preview(Launch("iso-preview", ("/bin/true",), {}, Limits(), None))
    assert 'cache="none" io="native"' in xml
    driver.close()
