"""What every driver promises, shown on the real thing. A driver that cannot run here skips with its reason."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import skip_or_fail

from bench import protocol
from bench.abilities import OwnDisk
from bench.dialogue import Dialogue
from bench.driver import Driver, Instance, Lab, Launch
from bench.drivers import checked_driver, driver_entry_points
from bench.errors import ConsoleTimeout, DriverUnavailable, InstanceError
from bench.journal import Journal, read_journals
from bench.model import EVENT_ORDER, Image, Limits, WorkloadImage

pytestmark = pytest.mark.slow

READY_SECONDS = 60.0
names = itertools.count()


@pytest.fixture(scope="module", params=sorted(driver_entry_points()))
def driver(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Driver]:
    try:
        made = checked_driver(request.param, lab)
    except DriverUnavailable as error:
        if not (error.message and error.hint):
            pytest.fail("an unavailable driver says why, and what would help")
        skip_or_fail(request.param, error.message)
    yield made
    made.close()


@pytest.fixture(scope="module")
def image(driver: Driver, workload_image: WorkloadImage) -> Image:
    return driver.build(workload_image)


def launch(driver: Driver, lab: Lab, *command: str, **environment: str) -> Launch:
    lease = lab.network.lease() if lab.network is not None and driver.kind != "process" else None
    defaults = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "ISOMARK_CPUS": "1"}
    name = f"iso-{lab.journal.owner.id}-c{next(names)}"
    return Launch(name, command or ("/isomark/boot/run",), {**defaults, **environment}, Limits(), lease)


def shell(driver: Driver, lab: Lab, script: str, *arguments: str, **environment: str) -> Launch:
    return launch(driver, lab, "/bin/sh", "-c", script, "sh", *arguments, **environment)


def printed(instance: Instance, seconds: float = READY_SECONDS) -> list[str]:
    """All lines until the console ends, without those of the guest's kernel and init."""
    texts = [line.text for line in instance.lines(seconds)]
    return [text for text in texts if not protocol.is_kernel_line(text) and text != "isomark init"]


def test_it_describes_itself_for_the_fingerprint(driver: Driver) -> None:
    described = driver.describe()
    assert described["engine"]
    assert all(isinstance(value, str) for value in described.values())
    assert described.get("emulated", "no") in {"yes", "no"}


def test_building_twice_gives_the_same_form_of_the_same_image(
    driver: Driver, image: Image, workload_image: WorkloadImage
) -> None:
    assert driver.build(workload_image) == image
    assert image.digest == workload_image.digest
    for size in (image.compressed_bytes, image.unpacked_bytes, image.on_disk_bytes):
        assert size is None or size > 1_000_000


def test_an_instance_becomes_ready_and_its_events_are_in_order(driver: Driver, image: Image, lab: Lab) -> None:
    with driver.start(image, launch(driver, lab)) as instance:
        dialogue = Dialogue(instance, READY_SECONDS)
        dialogue.ready()
        dialogue.quit(20)
    names = [event.name for event in instance.events]
    assert names == [name for name in EVENT_ORDER if name in names]
    assert {"spawned", "ready", "exited"} <= set(names)
    assert ("kernel" in names) == ("init" in names) == (driver.kind == "vm")
    stamps = [event.at_seconds for event in instance.events]
    assert stamps == sorted(stamps)


def test_an_idle_instance_answers_and_costs_memory(driver: Driver, image: Image, lab: Lab) -> None:
    with driver.start(image, launch(driver, lab)) as instance:
        dialogue = Dialogue(instance, READY_SECONDS)
        dialogue.ready()
        assert dialogue.ping() < READY_SECONDS
        reading = instance.memory()
    if reading.hypervisor_bytes is None:  # else it runs where its processes cannot be seen
        assert reading.processes is not None
        assert reading.processes >= 1
        assert reading.pss_bytes is not None
        assert reading.pss_bytes > 50_000
    assert reading.cgroup_bytes is None or reading.cgroup_bytes > 0


def test_command_arguments_and_environment_arrive_exactly(driver: Driver, image: Image, lab: Lab) -> None:
    odd = "a b'c\"d$e\\f*;&"
    script = 'for argument; do printf "<%s>\\n" "$argument"; done; printf "<%s>\\n" "$ODD"; env -0 | tr "\\0" "\\n"'
    with driver.start(image, shell(driver, lab, script, odd, "", ODD=odd)) as instance:
        lines = printed(instance)
    assert lines[:3] == [f"<{odd}>", "<>", f"<{odd}>"]
    variables = {line.partition("=")[0] for line in lines[3:] if "=" in line}
    own = {"PATH", "ISOMARK_CPUS", "ODD", "ISOMARK_OWNER", "PWD", "OLDPWD", "SHLVL", "_"}
    assert variables <= own, "nothing of the host's environment leaks in"
    assert {"PATH", "ISOMARK_CPUS", "ODD"} <= variables


def test_an_exit_status_is_told(driver: Driver, image: Image, lab: Lab) -> None:
    with driver.start(image, shell(driver, lab, "exit 7")) as instance:
        printed(instance)
        assert any("7" in line for line in list(instance.tail)[-3:])


def test_a_missing_command_is_an_error_that_names_it(driver: Driver, image: Image, lab: Lab) -> None:
    try:
        with driver.start(image, launch(driver, lab, "/isomark/none")) as instance:
            printed(instance)
            told = "\n".join(instance.tail)
    except InstanceError as error:
        told = error.message
    assert "/isomark/none" in told


def test_what_one_instance_writes_the_next_does_not_see(driver: Driver, image: Image, lab: Lab) -> None:
    script = "ls -A /isomark/scratch; echo secret > /isomark/scratch/left && echo written"
    for _ in range(2):
        with driver.start(image, shell(driver, lab, script)) as instance:
            lines = printed(instance)
        assert "written" in lines
        assert "left" not in lines


def test_what_an_instance_writes_is_what_it_takes_on_its_hosts_disk(driver: Driver, image: Image, lab: Lab) -> None:
    file = "/isomark/scratch/large"
    script = f"echo isomark ready; read go; dd if=/dev/urandom of={file} bs=1M count=8 conv=fsync && echo isomark ready"
    with driver.start(image, shell(driver, lab, f"{script}; read end")) as instance:
        if not isinstance(instance, OwnDisk):
            pytest.skip("it does not tell what it takes")
        Dialogue(instance, READY_SECONDS).ready()
        idle = instance.own_disk_bytes()
        assert 0 < idle < 64 << 20
        instance.send("go")
        Dialogue(instance, READY_SECONDS).ready()
        assert 8 << 20 <= instance.own_disk_bytes() - idle < 24 << 20


def test_the_scratch_space_and_the_usual_places_can_be_written(driver: Driver, image: Image, lab: Lab) -> None:
    script = "for d in /isomark/scratch /tmp /run /dev/shm; do echo x > $d/x && echo $d; done; cat /proc/self/comm"
    with driver.start(image, shell(driver, lab, script)) as instance:
        lines = printed(instance)
    assert [line for line in lines if line.startswith("/")] == ["/isomark/scratch", "/tmp", "/run", "/dev/shm"]
    assert "cat" in lines


def test_the_payload_sees_the_cpus_it_was_granted(driver: Driver, image: Image, lab: Lab) -> None:
    if driver.kind == "container":
        pytest.skip("a container's CPUs are a quota of time, not a number")
    with driver.start(image, shell(driver, lab, "nproc")) as instance:
        assert "1" in printed(instance)


def test_a_silent_instance_times_out_with_its_last_lines(driver: Driver, image: Image, lab: Lab) -> None:
    with driver.start(image, shell(driver, lab, "echo thinking; read never")) as instance:
        for line in instance.lines(READY_SECONDS):
            if line.text == "thinking":
                break
        with pytest.raises(ConsoleTimeout) as caught:
            list(instance.lines(0.2))
    assert "thinking" in caught.value.tail


def test_killing_ends_the_console_and_may_be_repeated(driver: Driver, image: Image, lab: Lab) -> None:
    with driver.start(image, launch(driver, lab)) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        instance.kill()
        instance.kill()
        assert list(instance.lines(20)) == []
        assert instance.events[-1].name == "exited"
        with pytest.raises(InstanceError):
            instance.memory()


def test_stopping_says_whether_it_worked(driver: Driver, image: Image, lab: Lab) -> None:
    script = "trap 'echo isomark exit 0; exit 0' TERM; echo isomark ready; while :; do read line || sleep 1; done"
    with driver.start(image, shell(driver, lab, script)) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        stopped = instance.stop(20)
        if driver.kind != "vm":
            assert stopped
        if stopped:
            assert instance.events[-1].name == "exited"


def test_after_the_block_nothing_is_owned_any_more(driver: Driver, image: Image, lab: Lab) -> None:
    before = _owned(lab.journal)
    with driver.start(image, launch(driver, lab)) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        assert len(_owned(lab.journal)) > len(before), "what is started is owned"
    assert _owned(lab.journal) == before
    assert not [path for path in lab.scratch.rglob("*") if path.is_file()]


def test_an_error_inside_the_block_still_removes_everything(driver: Driver, image: Image, lab: Lab) -> None:
    before = _owned(lab.journal)
    with pytest.raises(ZeroDivisionError), driver.start(image, launch(driver, lab)):
        raise ZeroDivisionError
    assert _owned(lab.journal) == before


def test_the_host_reaches_a_server_inside(driver: Driver, image: Image, lab: Lab) -> None:
    with driver.start(image, launch(driver, lab, "/isomark/http/run", ISOMARK_PORT="8087")) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        address = instance.address()
        if address is None:
            pytest.skip("no network on this host")
        inside = lab.network.inside if lab.network is not None and driver.kind != "process" else list
        fetch = "import urllib.request as r; print(r.urlopen('http://{}:8087/', timeout=20).status)"
        ended = subprocess.run(
            inside(["/usr/bin/env", "python3", "-c", fetch.format(address)]),
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.stdout.strip() == "200", ended.stderr


def test_two_instances_run_side_by_side(driver: Driver, image: Image, lab: Lab) -> None:
    with driver.start(image, launch(driver, lab)) as one, driver.start(image, launch(driver, lab)) as other:
        first, second = Dialogue(one, READY_SECONDS), Dialogue(other, READY_SECONDS)
        first.ready()
        second.ready()
        assert first.ping() > 0
        assert second.ping() > 0
        if driver.kind != "process" and lab.network is not None:
            assert one.address() != other.address()


def test_a_preview_starts_nothing(driver: Driver, lab: Lab) -> None:
    before = _owned(lab.journal)
    assert driver.preview(launch(driver, lab)).strip()
    assert _owned(lab.journal) == before


def _owned(journal: Journal) -> list[str]:
    (mine,) = [left for left in read_journals(Path(journal.path).parent) if left.owner == journal.owner]
    return sorted(f"{entry.kind} {entry.what}" for entry in mine.entries)
