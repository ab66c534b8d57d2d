"""Options of virtual servers: what a suite may say, and what it is told when that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.driver import Configurable, Lab
from bench.drivers import choose_drivers, load_driver
from bench.errors import OptionsError
from bench.lab import open_lab
from bench.suite import parse_suite
from vms.options import DEFAULTS, DomainOptions, parse_options
from vms.qemu import QEMU

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
    heads = re.findall(r"^    ([a-z][a-z_, ]*) \([^)]+\): \S", DomainOptions.__doc__, re.MULTILINE)
    assert {name for head in heads for name in head.split(", ")} == vars(DEFAULTS).keys()


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
        ({"guest": "full", "firmware": "bios", "disk_bus": "sata"}, "disk_bus"),
        ({"guest": "full", "firmware": "bios", "network_model": "e1000"}, "network_model"),
        ({"pin": ["0", "one"]}, "pin"),
        ({"network": "bridge:"}, "network"),
        ({"network": "somewhere"}, "network"),
        ({"virtiofs": "srv"}, "virtiofs"),
        ({"iothreads": 2}, "iothreads"),
        ({"iothreads": 1, "root": "virtiofs"}, "iothreads"),
        ({"iothreads": 1, "guest": "image", "image": "/d", "firmware": "bios", "disk_bus": "sata"}, "iothreads"),
        ({"cache": "none", "root": "virtiofs"}, "cache"),
        ({"io": "io_uring", "root": "virtiofs"}, "cache"),
        ({"guest": "full", "firmware": "bios", "root": "virtiofs"}, "root"),
        ({"guest": "full", "firmware": "bios", "console": "virtio"}, "console"),
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
        driver.configured({"cache": "none", "iothreads": 1})
    driver.configured({"network": "bridge:xenbr0"}).close()


@pytest.mark.parametrize(
    ("table", "key"),
    [({"threads": 2}, "threads"), ({"cpu": "host-passthrough"}, "cpu"), ({"machine": "microvm"}, "machine")],
)
def test_an_emulated_cpu_refuses_what_it_would_not_show(lab: Lab, table: dict[str, object], key: str) -> None:
    driver = load_driver("qemu", lab)
    assert isinstance(driver, Configurable)
    with pytest.raises(OptionsError, match=f"{key}: this driver has no"):
        driver.configured(table)


def test_a_root_on_virtiofs_needs_the_guests_host_to_be_this_one(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOMARK_LIBVIRT_URI", "qemu+tcp://me:secret@elsewhere/system")
    driver = load_driver("qemu", lab)
    assert isinstance(driver, Configurable)
    with pytest.raises(OptionsError, match=r"root: .* not at qemu\+tcp://me@elsewhere"):
        driver.configured({"root": "virtiofs"})


@pytest.mark.parametrize(
    ("table", "modules"),
    [
        ({}, {"virtio_pci", "virtio_blk", "virtio_net"}),
        ({"network": "none"}, {"virtio_pci", "virtio_blk"}),
        ({"root": "virtiofs"}, {"virtio_pci", "virtiofs", "overlay", "virtio_net"}),
        ({"balloon": "virtio", "virtiofs": "/srv"},
         {"virtio_pci", "virtio_blk", "virtiofs", "virtio_net", "virtio_balloon"}),
    ],
)  # fmt: skip
def test_a_guest_loads_what_its_devices_need_and_no_more(table: dict[str, object], modules: set[str]) -> None:
    assert set(QEMU.fit(QEMU, parse_options(table)).modules) == modules


def test_a_driver_of_others_takes_no_options(lab: Lab) -> None:
    assert not isinstance(load_driver("native", lab), Configurable)
    with pytest.raises(OptionsError, match="native takes no options"):
        load_driver("native", lab, {"cache": "none"})


def test_every_fault_of_a_suite_s_options_is_told_with_its_line(lab: Lab) -> None:
    suite = parse_suite(SUITE, "mine.toml")
    with pytest.raises(OptionsError) as caught:
        choose_drivers(suite.drivers, lab, suite.configurations)
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
