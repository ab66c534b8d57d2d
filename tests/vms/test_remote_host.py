"""Guests on a host that libvirt reaches over TCP: its files, its console, its end, and what becomes of them."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import usable
from session_host import SessionHost, session_host
from small_image import PATH, small_image

from bench.abilities import OwnDisk
from bench.clean import clean
from bench.dialogue import Dialogue
from bench.driver import Driver, Lab, Launch
from bench.errors import HostError, InstanceError
from bench.journal import Journal, read_journals
from bench.lab import open_lab
from bench.model import Image, Limits
from bench.state import state_directory
from vms.connection import Connection, is_remote
from vms.driver import qemu
from vms.volumes import Pool, remove_volume

pytestmark = pytest.mark.slow
READY_SECONDS = 60.0
MEMORY = 256 * 1024**2
names = itertools.count()


@pytest.fixture(scope="module")
def remote() -> Iterator[SessionHost]:
    with session_host() as host:
        yield host


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    state = tmp_path_factory.mktemp("state")
    (state / "kernels").symlink_to(state_directory() / "kernels")
    with open_lab(state) as opened:
        yield opened


@pytest.fixture
def driver(remote: SessionHost, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.setenv("ISOMARK_LIBVIRT_URI", remote.uri)
    with usable("qemu", lambda: qemu(lab)) as made:
        yield made


@pytest.fixture
def image(driver: Driver, tmp_path: Path) -> Image:
    return driver.build(small_image(tmp_path / "tree"))


def launch(lab: Lab, script: str) -> Launch:
    name = f"iso-{lab.journal.owner.id}-r{next(names)}"
    return Launch(name, ("/bin/sh", "-c", script), PATH, Limits(memory_bytes=MEMORY), None)


def shared(remote: SessionHost) -> list[str]:
    """The volumes but those of single trials."""
    return [name for name in remote.volumes() if not name.startswith("iso-")]


@pytest.mark.parametrize(
    ("uri", "remote"),
    [("qemu:///system", False), ("qemu:///session", False), ("xen:///system", False), ("qemu+ssh://host/system", True),
     ("xen+tcp://127.0.0.1:99/system", True), ("qemu+tls://host/system", True),
     ("qemu+unix:///system?socket=/x", False), ("test:///default", False), ("qemu+ext:///system?command=/x", True),
     ("qemu+ssh://[::1/system", False)],
)  # fmt: skip
def test_a_host_in_the_uri_makes_it_remote(uri: str, remote: bool) -> None:
    assert is_remote(uri) is remote


def test_a_guest_starts_from_uploaded_files_answers_and_tells_what_it_costs(
    driver: Driver, image: Image, lab: Lab, remote: SessionHost
) -> None:
    with driver.start(image, launch(lab, "echo isomark ready; read line; echo got $line")) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        assert [name for name in remote.volumes() if name.startswith("iso-")]
        reading = instance.memory()
        assert reading.pss_bytes is None, "what cannot be read is missing"
        assert reading.hypervisor_bytes is not None
        assert 10 * 1024**2 < reading.hypervisor_bytes < 2 * MEMORY
        assert isinstance(instance, OwnDisk)
        own = [remote.home / "pool" / name for name in remote.volumes() if name.startswith("iso-")]
        assert 0 < instance.own_disk_bytes() <= sum(path.stat().st_blocks * 512 for path in own) < 64 * 1024**2
        instance.send("hello")
        texts = [line.text for line in instance.lines(READY_SECONDS)]
    assert "got hello" in texts
    assert "Linux version" in instance.tail[0], "the console is there from its first byte"
    assert [event.name for event in instance.events] == ["spawned", "kernel", "init", "ready", "exited"]
    assert remote.volumes() == shared(remote)
    assert remote.hypervisors() == []


def test_shared_files_are_uploaded_once(driver: Driver, image: Image, tmp_path: Path, remote: SessionHost) -> None:
    stamps = {name: (remote.home / "pool" / name).stat().st_mtime_ns for name in shared(remote)}
    assert len(stamps) == 4, "a kernel and a disk, each with its mark"
    driver.build(small_image(tmp_path / "again"))
    assert stamps == {name: (remote.home / "pool" / name).stat().st_mtime_ns for name in shared(remote)}


def test_holes_stay_holes(image: Image, remote: SessionHost) -> None:
    copy = remote.home / "pool" / image.location.name
    assert copy.stat().st_size == image.location.stat().st_size
    assert copy.stat().st_blocks * 512 < 4 * 1024**2 + image.location.stat().st_blocks * 512


def test_a_half_uploaded_file_is_uploaded_again(remote: SessionHost, tmp_path: Path, journal: Journal) -> None:
    path = tmp_path / f"half-{os.urandom(4).hex()}"
    path.write_bytes(os.urandom(100_000))
    (remote.home / "pool" / path.name).write_bytes(b"half")
    connection = Connection(remote.uri)
    connection.open().storagePoolLookupByName("isomark").refresh(0)
    try:
        where = Pool(connection, journal).keep(path)
        assert Path(where).read_bytes() == path.read_bytes()
    finally:
        connection.close()
        for name in (path.name, f"{path.name}.complete"):
            remove_volume({"uri": remote.uri, "name": name})


def test_it_is_asked_to_end_and_does(driver: Driver, image: Image, lab: Lab) -> None:
    with driver.start(image, launch(lab, "echo isomark ready; sleep 100")) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        assert instance.stop(READY_SECONDS)


def test_a_flood_is_cut_off_and_memory_stays_bounded(driver: Driver, image: Image, lab: Lab) -> None:
    before = _resident_bytes()
    with driver.start(image, launch(lab, "echo isomark ready; yes $(seq 3000); sleep 100")) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        threading.Event().wait(2)  # nobody reads
        assert _resident_bytes() - before < 64 * 1024**2
        assert all(len(line) <= 4096 for line in instance.tail)


def test_a_host_that_dies_is_the_end_of_the_guest_and_the_next_trial_goes_on(
    driver: Driver, image: Image, lab: Lab, remote: SessionHost
) -> None:
    with driver.start(image, launch(lab, "echo isomark ready; sleep 100")) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        remote.stop(signal.SIGKILL)
        texts = [line.text for line in instance.lines(READY_SECONDS)]
        assert not any(text.startswith("isomark exit") for text in texts)
        assert any("connection" in line and "lost" in line for line in instance.tail)
        with pytest.raises(InstanceError):
            instance.memory()
        remote.start()
    with driver.start(image, launch(lab, "echo isomark ready")) as instance:
        Dialogue(instance, READY_SECONDS).ready()
    assert not [name for name in remote.volumes() if name.startswith("iso-")]


def test_a_dead_run_s_domain_and_volumes_are_cleaned_away(
    driver: Driver, image: Image, lab: Lab, remote: SessionHost
) -> None:
    request = launch(lab, "echo isomark ready; sleep 100")
    pid = os.fork()
    if pid == 0:  # a run that is killed: it has a journal and a connection of its own
        try:
            with Journal(Path(lab.journal.path).parent) as journal:
                mine = Lab(lab.state, lab.scratch, journal, None)
                qemu(mine).start(image, request)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    assert [name for name in remote.volumes() if name.startswith("iso-")]
    removed = clean(Path(lab.journal.path).parent)
    assert {"volume", "domain"} <= {one.entry.kind for one in removed}
    assert not [one.fault for one in removed if one.fault]
    assert not [name for name in remote.volumes() if name.startswith("iso-")]
    assert remote.hypervisors() == []


def test_what_cannot_be_removed_stays_in_the_journal() -> None:
    with pytest.raises(HostError) as caught:
        remove_volume({"uri": "qemu+tcp://127.0.0.1:1/system", "name": "iso-x"})
    assert "may still be there" in caught.value.hint


def test_closing_leaves_no_thread_and_no_descriptor(driver: Driver, image: Image, lab: Lab) -> None:
    driver.close()
    gc.collect()  # what other tests left to the collector does not count
    before = _descriptors()
    with driver.start(image, launch(lab, "echo isomark ready")) as instance:
        Dialogue(instance, READY_SECONDS).ready()
    del instance
    driver.close()
    # GLib, below libvirt, opens and closes one eventfd as it sees fit: test_many_guests shows that they do not add up
    assert _descriptors() - before in (Counter(), Counter(["anon_inode:[eventfd]"]))
    assert not [thread.name for thread in threading.enumerate() if thread.name == "libvirt events"]
    (mine,) = [left for left in read_journals(Path(lab.journal.path).parent) if left.owner == lab.journal.owner]
    assert {entry.kind for entry in mine.entries} <= {"directory", "netns"}


def _descriptors() -> Counter[str]:
    """What this process has open, by what it is."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return Counter(os.readlink(link) for link in links if os.path.lexists(link))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
