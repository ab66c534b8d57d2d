"""The memory of a hypervisor's host, as libvirt tells it, and what idle guests cost it where it is not this one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import skip_or_fail
from small_image import small_image

from bench import memory_metrics as memory
from bench.driver import Lab
from bench.drivers import load_driver
from bench.errors import DriverUnavailable
from bench.host_memory import read_meminfo
from bench.metrics import MEMORY_HYPERVISOR, MEMORY_PSS
from bench.model import Case, Limits, OutcomeKind
from bench.result import Slot
from bench.trial import Plan, conduct_trial
from bench.units import GIB, MIB
from bench.workload import BUILT_IN, find_workload
from vms.connection import Connection
from vms.driver import LibvirtDriver
from vms.house import read_house

INSTANCES = 2
MEMORY = 160 * MIB
PLAN = Plan(Limits(memory_bytes=MEMORY), rounds=1, warmup_rounds=0, round_seconds=1.0, timeout_seconds=300.0)


@pytest.fixture
def connection() -> Iterator[Connection]:
    opened = Connection("qemu:///system")
    try:
        opened.open()
    except DriverUnavailable as error:
        skip_or_fail("qemu", error.message)
    yield opened
    opened.close()


def test_of_a_linux_host_it_is_what_its_kernel_tells(connection: Connection) -> None:
    house = read_house(connection, xen=False)
    mine = read_meminfo()
    assert house.used_bytes + house.free_bytes == mine["MemTotal"]
    free = mine["MemFree"] + mine["Buffers"] + mine["Cached"]
    assert abs(house.free_bytes - free) < GIB  # others work here meanwhile


def test_guests_that_are_processes_of_this_kernel_have_no_house(lab: Lab) -> None:
    driver = load_driver("qemu", lab)
    assert isinstance(driver, LibvirtDriver)
    assert driver.house() is None
    driver.close()


@pytest.mark.xen
@pytest.mark.timeout(900)
def test_idle_guests_of_xen_cost_what_they_are_granted_and_a_little(
    xen_uri: str, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOMARK_XEN_URI", xen_uri)
    driver = load_driver("xen-pvh", lab)
    driver.check()
    workload = dataclasses.replace(find_workload("density"), instances=INSTANCES)
    scripts = {
        "isomark/lib.sh": (BUILT_IN / "lib.sh").read_text(),
        "isomark/density/run": (workload.folder / "payload/run").read_text(),
    }
    image = driver.build(small_image(tmp_path / "tree", scripts))
    trial = conduct_trial(Slot(0, 0, Case("density", driver.name)), workload, driver, image, PLAN, lab)
    driver.close()
    assert trial.outcome.kind is OutcomeKind.OK, trial.outcome

    def values(metric: str) -> list[float]:
        return [sample.value for sample in trial.samples if sample.metric == metric]

    told = values(memory.HOST_TOLD.name)
    print("xen-pvh, told in MiB:", [round(value / MIB, 1) for value in told])
    assert len(told) == INSTANCES + 1
    for fewer, more in itertools.pairwise(told):
        assert 0.95 * MEMORY < more - fewer < 1.2 * MEMORY
    assert len(values(MEMORY_HYPERVISOR.name)) == sum(range(INSTANCES + 1))
    assert (values(MEMORY_PSS.name), values(memory.HOST_USED.name)) == ([], [])
    assert all(used > MIB for used in values("guest_used_bytes"))
    assert "not this kernel's" in trial.missing[memory.KSM_SAVED.name]
