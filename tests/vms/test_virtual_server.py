"""Real guests that come to a bad end, libvirt's refusals, and domains of somebody else."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import skip_or_fail

from bench.dialogue import Dialogue
from bench.driver import Driver, Lab, Launch
from bench.drivers import load_driver
from bench.errors import DriverUnavailable, HostError, InstanceError
from bench.lab import open_lab
from bench.model import Image, Limits
from bench.state import state_directory
from bench.suite import find_suite
from bench.workload import find_workload
from runtimes.oci.workload_image import build_workload_image
from vms.process import find_hypervisors
from vms.removal import remove_domain

pytestmark = pytest.mark.slow
names = itertools.count()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab(state_directory()) as opened:
        yield opened


@pytest.fixture(scope="module")
def driver(lab: Lab) -> Iterator[Driver]:
    try:
        made = load_driver("qemu", lab)
        made.check()
    except DriverUnavailable as error:
        skip_or_fail("qemu", error.message)
    yield made
    made.close()


@pytest.fixture(scope="module")
def image(driver: Driver, lab: Lab) -> Image:
    workloads = [find_workload(name) for name in find_suite("quick").workloads]
    return driver.build(build_workload_image(workloads, lab.state, lab.journal, lambda _: None))


def launch(lab: Lab, script: str, limits: Limits | None = None) -> Launch:
    lease = lab.network.lease() if lab.network is not None else None
    name = f"iso-{lab.journal.owner.id}-v{next(names)}"
    command = ("/bin/sh", "-c", script)
    return Launch(name, command, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, limits or Limits(), lease)


def virsh(*arguments: str) -> str:
    command = ["virsh", "-q", "-c", "qemu:///system", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_a_panic_ends_the_guest_and_shows_in_the_tail(driver: Driver, image: Image, lab: Lab) -> None:
    script = "echo isomark ready; sleep 0.1; echo c > /proc/sysrq-trigger; sleep 60"
    with driver.start(image, launch(lab, script)) as instance:
        Dialogue(instance, 60).ready()
        list(instance.lines(30))
        told = "\n".join(instance.tail)
    assert "Kernel panic" in told or "sysrq triggered crash" in told


def test_a_killed_hypervisor_is_the_end_of_the_console(driver: Driver, image: Image, lab: Lab) -> None:
    request = launch(lab, "echo isomark ready; sleep 60")
    with driver.start(image, request) as instance:
        Dialogue(instance, 60).ready()
        uuid = virsh("domuuid", request.name).strip()
        (pid,) = find_hypervisors(uuid)
        os.kill(pid, signal.SIGKILL)
        assert list(instance.lines(10)) == []
        assert instance.events[-1].name == "exited"


def test_a_guest_that_prints_rubbish_and_floods_stays_within_bounds(driver: Driver, image: Image, lab: Lab) -> None:
    script = "head -c 300000 /dev/urandom; echo; echo isomark ready; sleep 60"
    with driver.start(image, launch(lab, script)) as instance:
        Dialogue(instance, 60).ready()
        assert all(len(line) <= 4096 for line in instance.tail)
        assert not any(re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", line) for line in instance.tail)


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


def test_five_guests_one_after_another_leave_no_descriptor_and_no_domain(
    driver: Driver, image: Image, lab: Lab
) -> None:
    counts = []
    for _ in range(5):
        with driver.start(image, launch(lab, "true")):
            pass
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[0] == counts[-1]
    driver.close()
    assert f"iso-{lab.journal.owner.id}" not in virsh("list", "--all", "--name")


def test_a_domain_of_somebody_else_is_not_touched(tmp_path: Path, driver: Driver) -> None:
    uuid = "5e1f0000-0000-4000-8000-00000000f00d"
    xml = tmp_path / "other.xml"
    xml.write_text(
        f"<domain type='qemu'><name>not-isomark</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>"
        "<os><type arch='x86_64'>hvm</type></os><devices/></domain>"
    )
    if subprocess.run(["virsh", "-q", "-c", "qemu:///system", "create", str(xml), "--paused"], check=False).returncode:
        pytest.fail("libvirt does not create a plain domain")
    try:
        with pytest.raises(HostError, match="not started by isomark"):
            remove_domain({"uri": "qemu:///system", "uuid": uuid, "name": "not-isomark"})
        assert virsh("domstate", uuid).strip() == "paused"
    finally:
        virsh("destroy", uuid)


def test_removing_a_domain_that_is_gone_is_fine(driver: Driver) -> None:
    remove_domain({"uri": "qemu:///system", "uuid": "5e1f0000-0000-4000-8000-00000000dead", "name": "gone"})


def test_a_wrong_address_of_libvirt_is_told_with_a_remedy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOMARK_LIBVIRT_URI", "nonsense:///x")
    driver = load_driver("qemu", lab)
    with pytest.raises(DriverUnavailable) as caught:
        driver.check()
    assert caught.value.hint
    driver.close()
