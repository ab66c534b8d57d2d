"""Real guests of the shipped image, and what libvirt refuses."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import usable

from bench.driver import Driver, Lab, Launch
from bench.drivers import load_driver
from bench.errors import DriverUnavailable, InstanceError
from bench.model import Image, Limits, WorkloadImage
from vms.removal import remove_domain

pytestmark = pytest.mark.slow
names = itertools.count()


@pytest.fixture(scope="module")
def driver(lab: Lab) -> Iterator[Driver]:
    with usable("qemu", lambda: load_driver("qemu", lab)) as made:
        yield made


@pytest.fixture(scope="module")
def image(driver: Driver, workload_image: WorkloadImage) -> Image:
    return driver.build(workload_image)


def launch(lab: Lab, script: str, limits: Limits | None = None) -> Launch:
    lease = lab.network.lease() if lab.network is not None else None
    name = f"iso-{lab.journal.owner.id}-v{next(names)}"
    command = ("/bin/sh", "-c", script)
    return Launch(name, command, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, limits or Limits(), lease)


def virsh(*arguments: str) -> str:
    command = ["virsh", "-q", "-c", "qemu:///system", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_the_guest_has_the_memory_and_cpus_it_was_granted(driver: Driver, image: Image, lab: Lab) -> None:
    script = "nproc; awk '/MemTotal/ { print $2 }' /proc/meminfo"
    with driver.start(image, launch(lab, script, Limits(cpus=2, memory_bytes=256 * 1024**2))) as instance:
        texts = [line.text for line in instance.lines(60)]
    numbers = [int(text) for text in texts if text.isdecimal()]
    assert numbers[0] == 2
    assert 150 * 1024 < numbers[1] <= 256 * 1024


def test_a_disk_that_is_gone_is_an_error_and_leaves_nothing(driver: Driver, image: Image, lab: Lab) -> None:
    request = launch(lab, "true")
    gone = replace(image, location=Path("/nonexistent/disk.raw"))
    with pytest.raises(InstanceError) as caught:
        driver.start(gone, request)
    assert "/nonexistent/disk.raw" in caught.value.message
    assert request.name not in virsh("list", "--all", "--name")
    assert not (lab.scratch / request.name).exists()


def test_more_disk_than_there_is_room_for_is_refused_with_a_hint(driver: Driver, image: Image, lab: Lab) -> None:
    with pytest.raises(InstanceError) as caught:
        driver.start(image, launch(lab, "true", Limits(disk_bytes=2**50)))
    assert "limits.disk" in caught.value.hint


def test_removing_a_domain_that_is_gone_is_fine(driver: Driver) -> None:
    remove_domain({"uri": "qemu:///system", "uuid": "5e1f0000-0000-4000-8000-00000000dead", "name": "gone"})


def test_a_wrong_address_of_libvirt_is_told_with_a_remedy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOMARK_LIBVIRT_URI", "nonsense:///x")
    driver = load_driver("qemu", lab)
    with pytest.raises(DriverUnavailable) as caught:
        driver.check()
    assert caught.value.hint
    driver.close()
