"""A real Xen, in the lab of tests/xenlab: libvirt's Xen driver answers, and guests of all three types speak.

These run with ``pytest -m xen`` only. What they take says nothing about Xen: it is emulated.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.clean import clean
from bench.errors import HostError
from bench.journal import Journal
from bench.state import VARIABLE, journal_directory, state_directory
from bench.units import MIB
from vms.initramfs import boot_files, find_busybox
from vms.kernel import GuestKernel
from xenlab import packages
from xenlab.guests import POOL, TYPES, boot_sector, firmware_xml, initramfs, linux_xml, running, uploaded
from xenlab.lab import lab_root, running_lab

libvirt = pytest.importorskip("libvirt")
pytestmark = [pytest.mark.xen, pytest.mark.timeout(600)]

TESTS = Path(__file__).parent.parent
MARKER = "isomark-speaks-from-xen"
HANG_SECONDS = 300.0


@pytest.fixture
def xen(xen_uri: str) -> Iterator[libvirt.virConnect]:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open(xen_uri)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def linux(xen_uri: str, kernel: GuestKernel) -> Iterator[tuple[str, str]]:
    """Kernel and initramfs in the lab, by their paths there."""
    raw, _ = boot_files(state_directory(), kernel)
    connection = libvirt.open(xen_uri)
    archive = initramfs(find_busybox().read_bytes(), MARKER)
    with (
        uploaded(connection, "vmlinux", raw.read_bytes()) as image,
        uploaded(connection, "initramfs", archive) as initrd,
    ):
        yield image, initrd
    assert connection.storagePoolLookupByName(POOL).listVolumes() == []
    connection.close()


@pytest.fixture
def state(xen_uri: str, tmp_path: Path) -> Path:
    """A state directory of its own that shares the built lab."""
    (tmp_path / "labs").mkdir()
    (tmp_path / "labs/xen").symlink_to(lab_root(state_directory()))
    return tmp_path


def _command(state: Path, *arguments: str) -> list[str]:
    return ["env", f"{VARIABLE}={state}", f"PYTHONPATH={TESTS}", sys.executable, "-m", "xenlab", *arguments]


def _xenlab(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(state, *arguments), capture_output=True, text=True, timeout=300, check=False)


def _guests(connection: libvirt.virConnect) -> list[str]:
    return [domain.name() for domain in connection.listAllDomains() if domain.ID() != 0]


def _keeper(state: Path) -> int:
    pid: int = json.loads((state / "labs/kept/xen.json").read_text())["owner"]["pid"]
    return pid


def _kill(pid: int) -> None:
    """Kill process ``pid`` and wait until it is dead."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], HANG_SECONDS)
    finally:
        os.close(fd)


def _left(state: Path) -> list[str]:
    """What a lab that is down may not leave: files of its own, and processes that name them."""
    places = ("owned", "scratch", "labs/kept")
    files = [str(path) for place in places for path in (state / place).glob("*")]
    commands = (_read(path) for path in Path("/proc").glob("[0-9]*/cmdline"))
    return files + [line for line in commands if str(state / "scratch") in line or str(state / "labs") in line]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def test_libvirt_in_the_lab_speaks_for_a_real_xen(xen: libvirt.virConnect) -> None:
    assert xen.getType() == "Xen"
    capabilities = ET.fromstring(xen.getCapabilities())
    assert {element.text for element in capabilities.findall("guest/os_type")} == {"xen", "hvm", "xenpvh"}
    assert {element.get("type") for element in capabilities.findall("guest/arch/domain")} == {"xen"}
    assert xen.lookupByID(0).name() == "Domain-0"


@pytest.mark.parametrize("guest_type", TYPES)
def test_a_guest_speaks_and_leaves_nothing(guest_type: str, xen: libvirt.virConnect, linux: tuple[str, str]) -> None:
    name = f"isomark-test-{guest_type}"
    free = xen.getFreeMemory()
    with uploaded(xen, f"{name}.raw", boot_sector(MARKER)) as disk:
        xml = firmware_xml(name, disk) if guest_type == "hvm" else linux_xml(name, guest_type, *linux)
        begun = time.monotonic()
        with running(xen, xml) as (domain, console):
            spoke = console.wait_for(MARKER, HANG_SECONDS)
            print(f"{guest_type}: {time.monotonic() - begun:.1f} s from create to marker, emulated")
            assert spoke, f"state {domain.state()}; it said {console.said!r}"
            assert _guests(xen) == [name]
            assert xen.getFreeMemory() < free - 128 * MIB
    assert _guests(xen) == []
    deadline = time.monotonic() + HANG_SECONDS
    while xen.getFreeMemory() < free - 4 * MIB and time.monotonic() < deadline:
        time.sleep(0.05)  # Xen takes a dead guest's memory back in its own time
    assert xen.getFreeMemory() >= free - 4 * MIB


def test_two_labs_know_nothing_of_each_other(xen: libvirt.virConnect, xen_uri: str, journal: Journal) -> None:
    with running_lab(state_directory(), journal, print) as other:
        assert other.uri != xen_uri
        connection = libvirt.open(other.uri)
        with uploaded(connection, "mine", b"x" * 4096):
            assert connection.storagePoolLookupByName(POOL).listVolumes() == ["mine"]
            assert "mine" not in xen.storagePoolLookupByName(POOL).listVolumes()
        connection.close()
        scratch = other.console.parent
    assert not scratch.exists()
    assert other.process.poll() is not None


def test_the_command_starts_one_lab_and_ends_it(state: Path) -> None:
    assert _xenlab(state, "status").returncode == 1
    racing = [subprocess.Popen(_command(state, "up"), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate(timeout=300)[0].strip() for process in racing)
    try:
        assert first == second == _xenlab(state, "up").stdout.strip() == _xenlab(state, "status").stdout.strip()
        connection = libvirt.open(first)
        assert connection.getType() == "Xen"
        connection.close()
    finally:
        ended = _xenlab(state, "down")
    assert ended.returncode == 0, ended.stderr
    assert _left(state) == []
    assert "no lab was up" in _xenlab(state, "down").stdout
    assert _xenlab(state, "status").returncode == 1


def test_a_killed_lab_is_cleaned_up_and_can_be_started_again(state: Path) -> None:
    assert _xenlab(state, "up").returncode == 0
    _kill(_keeper(state))
    removals = clean(journal_directory(state))
    assert {removal.entry.kind for removal in removals} == {"process", "directory"}
    assert [removal.fault for removal in removals if removal.fault] == []
    assert _left(state) == []
    assert _xenlab(state, "status").returncode == 1
    assert _xenlab(state, "up").stdout.startswith("xen+tcp://127.0.0.1:")
    assert _xenlab(state, "down").returncode == 0
    assert _left(state) == []


def test_a_lab_whose_machine_ends_goes_with_it(state: Path) -> None:
    assert _xenlab(state, "up").returncode == 0
    keeper = _keeper(state)
    (emulator,) = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    _kill(int(emulator))
    deadline = time.monotonic() + HANG_SECONDS
    while _left(state) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _left(state) == []


def test_a_build_that_is_killed_leaves_nothing_for_long(tmp_path: Path) -> None:
    with subprocess.Popen(_command(tmp_path, "up"), stderr=subprocess.PIPE, text=True) as building:
        assert building.stderr is not None
        for line in building.stderr:
            if "extracting" in line:
                building.kill()
    clean(journal_directory(tmp_path))
    assert _left(tmp_path) == []
    assert list((tmp_path / "labs/xen").iterdir()) == []


def test_a_state_directory_that_cannot_be_written_is_told_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "labs").touch()
    refused = _xenlab(tmp_path, "up")
    assert refused.returncode == 1
    assert "cannot keep a lab" in refused.stderr
    assert "hint: set ISOMARK_STATE" in refused.stderr


def test_a_package_that_apt_does_not_know_is_told_with_a_remedy() -> None:
    with pytest.raises(HostError, match="no-such-package-of-debian") as caught:
        packages.versions(["no-such-package-of-debian", "coreutils"])
    assert "apt-get update" in caught.value.hint
