"""What goes wrong with libvirt is told with what would help, leaves nothing, and touches nobody else's domain."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import usable
from session_host import session_host
from small_image import PATH, small_image

from bench.clean import clean
from bench.driver import Driver, Lab, Launch
from bench.errors import DriverUnavailable, HostError, InstanceError, UsageError
from bench.journal import Journal
from bench.model import Image, Limits
from vms.connection import Connection, Watch
from vms.domain import NAMESPACE
from vms.driver import qemu
from vms.ours import find_own, own_domains
from vms.removal import remove_domain
from vms.volumes import Pool

libvirt = pytest.importorskip("libvirt")
pytestmark = pytest.mark.slow
TEST_DOMAIN = "6695eb01-f6a4-8304-79aa-97f2502e193f"
"""The one that libvirt's test:///default has from the beginning."""
OURS = "5e1f0000-0000-4000-8000-0000000000aa"
names = itertools.count()


@pytest.fixture
def image(driver: Driver, tmp_path: Path) -> Iterator[Image]:
    made = driver.build(small_image(tmp_path / "tree"))
    yield made
    for path in (made.location, made.location.with_suffix(".json")):
        path.unlink(missing_ok=True)


@pytest.fixture
def driver(lab: Lab) -> Iterator[Driver]:
    with usable("qemu", lambda: qemu(lab)) as made:
        yield made


def launch(lab: Lab, name: str = "") -> Launch:
    name = name or f"iso-{lab.journal.owner.id}-e{next(names)}"
    return Launch(name, ("/bin/sh", "-c", "echo isomark ready"), PATH, Limits(memory_bytes=256 * 1024**2), None)


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("nonsense:///x", "qemu:///system"),
        ("qemu+carrierpigeon://host/system", "ssh"),
        ("qemu+tcp://127.0.0.1:1/system", "virsh -c qemu+tcp://127.0.0.1:1/system list"),
        ("qemu+tcp://no-such-host.invalid/system", "not known"),
        ("qemu+tls://127.0.0.1:1/system", "certificate"),
    ],
)
def test_a_wrong_address_is_told_with_a_remedy(uri: str, word: str) -> None:
    connection = Connection(uri)
    with pytest.raises(DriverUnavailable) as caught:
        connection.open()
    assert uri in caught.value.message
    assert word in caught.value.hint
    connection.close()


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("qemu+tcp://127.0.0.1:1/system", "isomark clean --gone qemu+tcp://127.0.0.1:1/system"),
        ("qemu+tcp://me:secret@127.0.0.1:1/system", "isomark clean --gone with its URI"),
    ],
)
def test_a_domain_of_a_silent_host_may_be_given_up_and_no_password_is_printed(uri: str, told: str) -> None:
    with pytest.raises(HostError) as caught:
        remove_domain({"uri": uri, "uuid": OURS, "name": "iso-fake"})
    assert told in caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint


def test_a_refused_login_is_told_with_a_remedy() -> None:
    with session_host(auth="sasl") as host:
        connection = Connection(host.uri)
        with pytest.raises(DriverUnavailable, match="authentication failed") as caught:
            connection.open()
    assert "login was refused" in caught.value.hint


def test_an_unknown_machine_type_is_found_before_anything_starts(driver: Driver) -> None:
    other = driver.configured({"machine": "nonesuch"})  # type: ignore[attr-defined]
    with pytest.raises(DriverUnavailable, match="nonesuch") as caught:
        other.check()
    assert "virsh domcapabilities" in caught.value.hint
    other.close()


def test_a_kernel_without_virtio_is_found_before_anything_starts(driver: Driver, lab: Lab, tmp_path: Path) -> None:
    state = tmp_path / "other"
    package = state / "kernels/linux-image-9.9"
    (package / "boot").mkdir(parents=True)
    (package / "boot/vmlinuz-9.9").write_bytes(b"")
    (package / "lib/modules/9.9/kernel").mkdir(parents=True)
    bare = qemu(Lab(state, lab.scratch, lab.journal, None))
    with pytest.raises(DriverUnavailable, match="has no virtio_pci") as caught:
        bare.check()
    assert "virtio" in caught.value.hint
    bare.close()


@contextmanager
def _small(path: Path, size: str) -> Iterator[Path]:
    """A file system of ``size`` at ``path``."""
    path.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "isomark-test", path], check=False
    ).returncode:
        pytest.skip("may not mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_told_and_leaves_nothing(driver: Driver, image: Image, lab: Lab) -> None:
    with _small(lab.scratch, "1m"):
        with pytest.raises(InstanceError, match="No space left") as caught:
            driver.start(image, launch(lab))
        assert "df -h" in caught.value.hint
        assert list(lab.scratch.iterdir()) == []


def test_a_full_disk_of_another_host_is_told_and_leaves_nothing(tmp_path: Path, journal: Journal) -> None:
    content = tmp_path / "content"
    content.write_bytes(b"x" * 3_000_000)
    with session_host() as host:
        connection = Connection(host.uri)
        connection.open().storagePoolLookupByName("isomark").destroy()
        with _small(host.home / "pool", "1m"):
            (host.home / "pool").chmod(0o777)
            try:
                with pytest.raises(InstanceError, match="No space left") as caught:
                    Pool(connection, journal).keep(content)
                assert "df -h" in caught.value.hint
                assert host.volumes() == []
            finally:
                connection.open().storagePoolLookupByName("isomark").destroy()
                connection.close()


def test_a_domain_of_the_same_name_but_somebody_else_s_is_not_touched(driver: Driver, image: Image, lab: Lab) -> None:
    request = launch(lab)
    connection = Connection("qemu:///system")
    other = connection.open().createXML(
        f"<domain type='qemu'><name>{request.name}</name><memory unit='MiB'>64</memory>"
        "<os><type arch='x86_64'>hvm</type></os><devices/></domain>",
        libvirt.VIR_DOMAIN_START_PAUSED,
    )
    try:
        with pytest.raises(InstanceError, match="already exists") as caught:
            driver.start(image, request)
        assert "somebody else's" in caught.value.hint
        assert other.state()[0] == libvirt.VIR_DOMAIN_PAUSED
        assert list(lab.scratch.iterdir()) == []
        with pytest.raises(HostError, match="not started by isomark"):
            remove_domain({"uri": "qemu:///system", "uuid": other.UUIDString(), "name": request.name})
        assert other.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    finally:
        other.destroy()
        connection.close()


def test_a_journal_that_names_a_domain_of_somebody_else_removes_nothing(driver: Driver, tmp_path: Path) -> None:
    connection = Connection("qemu:///system")
    other = connection.open().createXML(
        f"<domain type='qemu'><name>somebody-else-s-{os.getpid()}</name><memory unit='MiB'>64</memory>"
        "<os><type arch='x86_64'>hvm</type></os><devices/></domain>",
        libvirt.VIR_DOMAIN_START_PAUSED,
    )
    forged = tmp_path / "0badcafe.jsonl"
    owner = {"id": "0badcafe", "pid": 1, "start_ticks": -1, "boot_id": "another"}
    what = {"uri": "qemu:///system", "uuid": other.UUIDString(), "name": "iso-0badcafe-0"}
    forged.write_text(json.dumps({"owner": owner}) + "\n" + json.dumps({"own": 0, "kind": "domain", "what": what}))
    try:
        (removal,) = clean(tmp_path)
        assert "not started by isomark" in removal.fault
        assert other.state()[0] == libvirt.VIR_DOMAIN_PAUSED
        assert forged.exists(), "what could not be removed is tried again"
    finally:
        other.destroy()
        connection.close()


@pytest.fixture
def fake() -> Iterator[Connection]:
    """libvirt's own test driver, with a domain of ours beside the one that it has."""
    connection = Connection("test:///default")
    ours = connection.open().createXML(
        f"<domain type='test'><name>iso-fake</name><uuid>{OURS}</uuid><memory>65536</memory>"
        f"<metadata><i:instance xmlns:i='{NAMESPACE}' owner='0badcafe'/></metadata>"
        "<os><type>hvm</type></os></domain>",
        0,
    )
    yield connection
    with suppress(libvirt.libvirtError):  # a test removed it
        ours.destroy()
    connection.close()


def test_only_domains_with_our_mark_are_ours(fake: Connection) -> None:
    found, silent = own_domains([fake, Connection("nonsense:///x")])
    assert [(own.name, own.owner, own.state) for own in found] == [("iso-fake", "0badcafe", "running")]
    assert len(silent) == 1
    assert find_own("iso-fake", found).uuid == find_own(OURS[:8], found).uuid == OURS
    with pytest.raises(UsageError, match="no virtual server test"):
        find_own("test", found)


def test_removing_takes_ours_and_leaves_the_others(fake: Connection) -> None:
    with pytest.raises(HostError, match="not started by isomark"):
        remove_domain({"uri": "test:///default", "uuid": TEST_DOMAIN, "name": "test"})
    watch = fake.watch(OURS)
    remove_domain({"uri": "test:///default", "uuid": OURS, "name": "iso-fake"})
    assert watch.ended.wait(10), "its end is told, nobody asks"
    assert not watch.crashed
    remove_domain({"uri": "test:///default", "uuid": OURS, "name": "iso-fake"})
    assert [domain.name() for domain in fake.open().listAllDomains()] == ["test"]


def test_a_watch_ends_once() -> None:
    told: list[str] = []
    watch = Watch("x", then=lambda: told.append("ended"))
    watch.end()
    watch.end()
    assert told == ["ended"]


def test_a_host_that_went_and_came_back_is_asked_again() -> None:
    with session_host() as host:
        connection = Connection(host.uri)
        watch = connection.watch("nobody")
        assert connection.open().isAlive()
        host.stop()
        assert watch.ended.wait(30)
        assert watch.lost
        host.start()
        assert connection.open().isAlive()
        connection.close()
