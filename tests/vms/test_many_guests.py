"""Guests one after another leave nothing: no libvirt object, thread, descriptor, domain, file or journal entry."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import usable
from session_host import session_host
from small_image import PATH, small_image

from bench.dialogue import Dialogue
from bench.driver import Lab, Launch
from bench.journal import read_journals
from bench.model import Limits
from vms.connection import Connection
from vms.driver import LibvirtDriver, qemu

pytestmark = pytest.mark.slow
READY_SECONDS = 60.0
TOGETHER_SECONDS = 400.0
FIRST = 1
"""Modules are imported and caches filled by the first guest."""


@pytest.fixture
def before() -> dict[str, int]:
    """The libvirt objects that other tests hold."""
    pytest.importorskip("libvirt")
    return _libvirt_objects()


@pytest.fixture(params=["here", pytest.param("another host", marks=pytest.mark.full)])
def driver(
    request: pytest.FixtureRequest, before: dict[str, int], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LibvirtDriver]:
    if request.param == "here":
        with usable("qemu", lambda: qemu(lab)) as made:
            yield made
        return
    with session_host() as host:
        monkeypatch.setenv("ISOMARK_LIBVIRT_URI", host.uri)
        with usable("qemu", lambda: qemu(lab)) as made:
            yield made
        assert not [name for name in host.volumes() if name.startswith("iso-")]
        assert host.hypervisors() == []


@pytest.mark.parametrize("guests", [3, pytest.param(20, marks=[pytest.mark.full, pytest.mark.timeout(900)])])
def test_guests_one_after_another_leave_nothing(
    guests: int, driver: LibvirtDriver, before: dict[str, int], lab: Lab, tmp_path: Path
) -> None:
    image = driver.build(small_image(tmp_path / "tree"))
    entries = _entries(lab)
    seen = []
    try:
        for number in range(FIRST + guests):
            with driver.start(image, _request(lab, number)) as instance:
                Dialogue(instance, READY_SECONDS).ready()
            del instance
            seen.append(_held())
        assert seen[FIRST:] == [seen[FIRST]] * guests, "each leaves what the one before left"
        _close_and_look(driver, before, lab, entries)
    finally:
        for path in (image.location, image.location.with_suffix(".json")):
            path.unlink(missing_ok=True)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("driver", ["here"], indirect=True)
def test_eight_guests_at_once_all_become_ready_and_leave_nothing(
    driver: LibvirtDriver, before: dict[str, int], lab: Lab, tmp_path: Path
) -> None:
    image = driver.build(small_image(tmp_path / "tree"))
    entries = _entries(lab)
    try:
        with ExitStack() as running:
            servers = [running.enter_context(driver.start(image, _request(lab, number))) for number in range(8)]
            with ThreadPoolExecutor(8) as readers:
                ready = list(readers.map(lambda server: Dialogue(server, TOGETHER_SECONDS).ready(), servers))
            spawned = [server.events[0].at_seconds for server in servers]
            assert max(spawned) < min(ready), "they were all booting at the same time"
            assert len(_domains(driver._connection.address, lab)) == 8
            del servers
        _close_and_look(driver, before, lab, entries)
    finally:
        for path in (image.location, image.location.with_suffix(".json")):
            path.unlink(missing_ok=True)


def _request(lab: Lab, number: int) -> Launch:
    command = ("/bin/sh", "-c", "echo isomark ready; read line")
    return Launch(f"iso-{lab.journal.owner.id}-m{number}", command, PATH, Limits(memory_bytes=256 * 1024**2), None)


def _close_and_look(driver: LibvirtDriver, before: dict[str, int], lab: Lab, entries: list[str]) -> None:
    address = driver._connection.address
    driver.close()
    assert _libvirt_objects() == before
    assert [thread for thread in threading.enumerate() if thread.name == "libvirt events"] == []
    assert _entries(lab) == entries
    assert list(lab.scratch.iterdir()) == []
    assert _domains(address, lab) == []


def _held() -> tuple[int, int, dict[str, int]]:
    """Descriptors, threads and libvirt objects of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count(), _libvirt_objects()


def _libvirt_objects() -> dict[str, int]:
    """How many live objects of each class libvirt's Python module has; emptied ones are not alive."""
    import libvirt

    gc.collect()
    classes = tuple(getattr(libvirt, name) for name in ("virConnect", "virDomain", "virStream", "virStorageVol"))
    alive = (one for one in gc.get_objects() if isinstance(one, classes) and vars(one).get("_o") is not None)
    return dict(Counter(type(one).__name__ for one in alive))


def _entries(lab: Lab) -> list[str]:
    (mine,) = [left for left in read_journals(Path(lab.journal.path).parent) if left.owner == lab.journal.owner]
    return sorted(f"{entry.kind} {entry.what}" for entry in mine.entries)


def _domains(address: str, lab: Lab) -> list[str]:
    connection = Connection(address)
    names = [domain.name() for domain in connection.open().listAllDomains()]
    connection.close()
    return [name for name in names if lab.journal.owner.id in name]
