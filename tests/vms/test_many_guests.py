"""Guests one after another leave nothing: no libvirt object, thread, descriptor, domain, file or journal entry."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import skip_or_fail
from session_host import session_host
from small_image import PATH, small_image

from bench.dialogue import Dialogue
from bench.driver import Lab, Launch
from bench.errors import DriverUnavailable
from bench.journal import read_journals
from bench.model import Limits
from vms.connection import Connection
from vms.driver import LibvirtDriver, qemu

pytestmark = pytest.mark.slow
GUESTS = int(os.environ.get("ISOMARK_GUESTS", "3"))
READY_SECONDS = 60.0
FIRST = 1
"""Modules are imported and caches filled by the first guest."""


@pytest.fixture
def before() -> dict[str, int]:
    """The libvirt objects that other tests hold."""
    pytest.importorskip("libvirt")
    return _libvirt_objects()


@pytest.fixture(params=["here", "another host"])
def driver(
    request: pytest.FixtureRequest, before: dict[str, int], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LibvirtDriver]:
    if request.param == "here":
        yield from _checked(lab)
        return
    with session_host() as host:
        monkeypatch.setenv("ISOMARK_LIBVIRT_URI", host.uri)
        yield from _checked(lab)
        assert not [name for name in host.volumes() if name.startswith("iso-")]
        assert host.hypervisors() == []


def _checked(lab: Lab) -> Iterator[LibvirtDriver]:
    made = qemu(lab)
    try:
        made.check()
    except DriverUnavailable as error:
        skip_or_fail("qemu", error.message)
    yield made
    made.close()


def test_guests_one_after_another_leave_nothing(
    driver: LibvirtDriver, before: dict[str, int], lab: Lab, tmp_path: Path
) -> None:
    image = driver.build(small_image(tmp_path / "tree"))
    entries = _entries(lab)
    seen = []
    try:
        for number in range(FIRST + GUESTS):
            name = f"iso-{lab.journal.owner.id}-m{number}"
            command = ("/bin/sh", "-c", "echo isomark ready; read line")
            request = Launch(name, command, PATH, Limits(memory_bytes=256 * 1024**2), None)
            with driver.start(image, request) as instance:
                Dialogue(instance, READY_SECONDS).ready()
            del instance
            seen.append(_held())
        assert seen[FIRST:] == [seen[FIRST]] * GUESTS, "each leaves what the one before left"
        address = driver._connection.address
        driver.close()
        assert _libvirt_objects() == before
        assert [thread for thread in threading.enumerate() if thread.name == "libvirt events"] == []
        assert _entries(lab) == entries
        assert list(lab.scratch.iterdir()) == []
        assert _domains(address, lab) == []
    finally:
        for path in (image.location, image.location.with_suffix(".json")):
            path.unlink(missing_ok=True)


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
