"""The drivers for Xen on a real, if emulated, one; what they take says nothing about Xen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from living_image import live, living_image
from small_image import PATH, small_image

from bench import metrics
from bench.dialogue import Dialogue
from bench.driver import Lab, Launch
from bench.drivers import load_driver
from bench.model import Limits, OutcomeKind
from vms.connection import Connection
from vms.driver import LibvirtDriver
from vms.volumes import POOL

pytestmark = [pytest.mark.xen, pytest.mark.timeout(600)]
HANG_SECONDS = 250.0
MEMORY = 256 * 1024**2


@pytest.fixture(params=["xen-pv", "xen-pvh", "xen-hvm"])
def driver(
    request: pytest.FixtureRequest, xen_uri: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LibvirtDriver]:
    monkeypatch.setenv("ISOMARK_XEN_URI", xen_uri)
    made = load_driver(request.param, lab)
    assert isinstance(made, LibvirtDriver)
    made.check()
    yield made
    made.close()


def test_a_guest_starts_answers_tells_its_memory_and_leaves_nothing(
    driver: LibvirtDriver, lab: Lab, xen_uri: str, tmp_path: Path
) -> None:
    described = driver.describe()
    assert "Xen 4." in described["engine"]
    assert described["emulated"] == "yes", "a Xen in an emulated machine is never ranked"
    image = driver.build(small_image(tmp_path / "tree"))
    script = "echo isomark ready; read line; echo got $line"
    request = Launch(
        f"iso-{lab.journal.owner.id}-{driver.name}", ("/bin/sh", "-c", script), PATH, Limits(memory_bytes=MEMORY), None
    )
    with driver.start(image, request) as instance:
        Dialogue(instance, HANG_SECONDS).ready()
        reading = instance.memory()
        assert reading.pss_bytes is None
        assert reading.hypervisor_bytes is not None
        assert 0.9 * MEMORY < reading.hypervisor_bytes < 1.2 * MEMORY
        assert instance.cpu_seconds() > 0
        instance.send("hello")
        texts = [line.text for line in instance.lines(HANG_SECONDS)]
    at = {event.name: event.at_seconds - instance.events[0].at_seconds for event in instance.events}
    print(f"{driver.name}, emulated:", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in at.items()))
    assert "got hello" in texts
    assert list(at) == ["spawned", "kernel", "init", "ready", "exited"]
    _left_nothing(xen_uri, request.name)


def test_a_guest_ends_when_asked(driver: LibvirtDriver, lab: Lab, xen_uri: str, tmp_path: Path) -> None:
    if driver.name == "xen-hvm":
        pytest.skip("takes a minute more and says the same")
    image = driver.build(small_image(tmp_path / "tree"))
    name = f"iso-{lab.journal.owner.id}-{driver.name}"
    script = "trap 'echo asked; exit' TERM; echo isomark ready; while :; do sleep 1; done"
    with driver.start(
        image, Launch(name, ("/bin/sh", "-c", script), PATH, Limits(memory_bytes=MEMORY), None)
    ) as instance:
        Dialogue(instance, HANG_SECONDS).ready()
        assert instance.stop(HANG_SECONDS)
    _left_nothing(xen_uri, name)


def test_a_guest_is_taken_through_what_xen_can_do(
    driver: LibvirtDriver, lab: Lab, xen_uri: str, tmp_path: Path
) -> None:
    if driver.name == "xen-hvm":
        pytest.skip("takes minutes more and says the same")
    trial = live(driver, driver.build(living_image(tmp_path / "tree")), lab, HANG_SECONDS)
    assert trial.outcome.kind is OutcomeKind.OK, trial.outcome
    taken = {sample.metric: sample.value for sample in trial.samples}
    print(f"{driver.name}, emulated:", ", ".join(f"{name} {value:.2f}" for name, value in taken.items()))
    expected = {*metrics.LIFECYCLE, metrics.CHANNEL_DELAY} - {metrics.SNAPSHOT, metrics.REBOOT}
    assert taken.keys() == {metric.name for metric in expected}
    assert trial.missing.keys() == {metrics.SNAPSHOT.name, metrics.REBOOT.name}
    assert [event.name for event in trial.events] == ["spawned", "kernel", "init", "ready", "exited"]
    _left_nothing(xen_uri, f"iso-{lab.journal.owner.id}")


def _left_nothing(uri: str, name: str) -> None:
    connection = Connection(uri)
    handle = connection.open()
    assert [domain.name() for domain in handle.listAllDomains()] == ["Domain-0"]
    assert not [volume for volume in handle.storagePoolLookupByName(POOL).listVolumes() if volume.startswith(name)]
    del handle
    connection.close()
