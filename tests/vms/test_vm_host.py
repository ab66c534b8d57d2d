"""What the host must offer: permissions, cgroups, KVM that boots, and findings that name a remedy."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import skip_or_fail

from bench.driver import Lab, Launch
from bench.errors import DriverUnavailable, InstanceError
from bench.model import Limits
from bench.state import state_directory
from vms import host, proof
from vms.access import blocked_directory, may_use
from vms.checks import findings
from vms.connection import Connection, User, told
from vms.console import ConsoleListener, peer_pid
from vms.guest_files import LocalFiles
from vms.kernel import GuestKernel, find_kernel
from vms.log import last_words, remove_log
from vms.process import cgroup_bytes, family, find_hypervisors
from vms.remedies import hint_for
from vms.running import CONNECT_SECONDS, Here

if TYPE_CHECKING:
    import libvirt

STRANGER = User(64999, 64999)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("mode", "user", "wanted", "allowed"),
    [
        (0o604, STRANGER, os.R_OK, True),
        (0o640, STRANGER, os.R_OK, False),
        (0o604, STRANGER, os.R_OK | os.W_OK, False),
        (0o000, User(0, 0), os.R_OK | os.W_OK, True),
        (0o060, User(64999, os.getegid()), os.R_OK | os.W_OK, True),
    ],
)
def test_permission_bits_decide_who_may(folder: Path, mode: int, user: User, wanted: int, allowed: bool) -> None:
    path = folder / "file"
    path.touch()
    path.chmod(mode)
    assert may_use(path, user, wanted) is allowed


def test_the_first_closed_directory_is_named(folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    folder.chmod(0o700)
    blocked = blocked_directory(inner, STRANGER)
    assert blocked is not None
    assert folder.is_relative_to(blocked), "pytest's own directories above may be closed already"
    with pytest.raises(DriverUnavailable) as caught:
        host.require_open_directories(STRANGER, inner)
    assert f"chmod o+x {blocked}" in caught.value.hint
    host.require_open_directories(None, inner)


def test_who_cannot_give_files_to_qemu_s_user_is_told_before_the_first_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DriverUnavailable, match="only root") as caught:
        host.require_giving_to(STRANGER)
    assert "qemu:///session" in caught.value.hint
    host.require_giving_to(User(1000, 1000))
    host.require_giving_to(None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    host.require_giving_to(STRANGER)


def test_a_kvm_device_is_missing_closed_or_open(folder: Path) -> None:
    device = folder / "kvm"
    assert host.kvm_state(device) == "missing"
    device.touch()
    device.chmod(0o600)
    expected = "open" if host._default_user() is None else "closed"
    assert host.kvm_state(device) == expected
    device.chmod(0o666)
    assert host.kvm_state(device) == "open"


@pytest.mark.parametrize(
    ("lines", "figure", "value"),
    [
        (["4:memory:/machine/qemu-1-x.libvirt-qemu", "0::/"], "memory/machine/qemu-1-x.libvirt-qemu", 4096),
        (["0::/machine/qemu-1-x.libvirt-qemu/emulator"], "machine/qemu-1-x.libvirt-qemu", 8192),
        (
            [r"0::/machine.slice/machine-qemu\x2d1\x2dx.scope/libvirt/emulator"],
            r"machine.slice/machine-qemu\x2d1\x2dx.scope/libvirt",
            12288,
        ),
        (["0::/user.slice/session.scope"], "user.slice", None),
        (["4:memory:/"], "memory", None),
    ],
    ids=["v1", "v2", "v2 under systemd", "session", "no cgroup of its own"],
)
def test_the_cgroup_of_the_domain_is_read(folder: Path, lines: list[str], figure: str, value: int | None) -> None:
    (folder / "proc/7").mkdir(parents=True)
    (folder / "proc/7/cgroup").write_text("\n".join(lines) + "\n")
    group = folder / "cgroups" / figure
    group.mkdir(parents=True)
    (group / ("memory.usage_in_bytes" if "memory:" in lines[0] else "memory.current")).write_text(f"{value or 1}\n")
    assert cgroup_bytes(7, folder / "cgroups", folder / "proc") == value


def test_a_family_has_its_head_and_its_children() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        assert family(os.getpid())[0] == os.getpid()
        assert pid in family(os.getpid())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_no_process_is_taken_for_a_hypervisor_by_chance() -> None:
    assert find_hypervisors("5e1f0000-0000-4000-8000-00000000beef") == []


def test_a_path_too_long_for_a_socket_is_told_with_a_remedy(folder: Path) -> None:
    with pytest.raises(InstanceError, match="too long") as caught:
        ConsoleListener(folder / ("x" * 120), None)
    assert "ISOMARK_STATE" in caught.value.hint


def test_a_start_that_fails_with_its_console_open_leaves_no_descriptor(folder: Path) -> None:
    def start(_paused: bool) -> libvirt.virDomain:
        with socket.socket(socket.AF_UNIX) as hypervisor:
            hypervisor.connect(str(folder / "console"))
            time.sleep(0.1)  # until it has been let in
            raise InstanceError("no memory for it")

    before = len(os.listdir("/proc/self/fd"))
    with Here(folder / "console", "iso-none", None) as place, pytest.raises(InstanceError, match="no memory"):
        place.run(start)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_start_that_fails_before_its_console_opens_does_not_wait_for_it(folder: Path) -> None:
    def start(_paused: bool) -> libvirt.virDomain:
        raise InstanceError("libvirt does not like it")

    begun = time.monotonic()
    with Here(folder / "console", "iso-none", None) as place, pytest.raises(InstanceError, match="does not like it"):
        place.run(start)
    assert time.monotonic() - begun < CONNECT_SECONDS


def test_what_is_written_to_a_trial_s_folder_is_nobody_else_s_to_read(lab: Lab) -> None:
    files = LocalFiles(lab, lambda: None)
    launch = Launch("iso-mode", ("true",), {}, Limits(), None)
    (lab.scratch / launch.name).mkdir()
    with ExitStack() as undo:
        path = Path(files.add(launch, undo, "saved", Path.touch))
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_console_tells_who_opened_it_and_leaves_no_socket(folder: Path) -> None:
    with ConsoleListener(folder / "console", None) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "console"))
        peer, _ = listener.accept()
        pid, fd = peer_pid(peer), peer.detach()
        os.close(fd)
    assert pid == os.getpid()
    assert list(folder.iterdir()) == []


def test_errors_of_libvirt_become_ours_with_a_hint() -> None:
    libvirt = pytest.importorskip("libvirt")
    connection = Connection("test:///default")
    with pytest.raises(InstanceError) as caught, told("cannot start it"):
        connection.open().createXML("<domain type='test'><name>x</name></domain>", 0)
    assert caught.value.message.startswith("cannot start it: ")
    assert isinstance(caught.value.__cause__, libvirt.libvirtError)
    connection.close()
    connection.close()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Could not open '/x/disk.qcow2': Permission denied", "doctor"),
        ("write failed: No space left on device", "df -h"),
        ("unsupported configuration: Emulator does not support machine type 'q99'", "domcapabilities"),
        ("Could not access KVM kernel module /dev/kvm", "qemu"),
        ("something new", "/var/log/libvirt/qemu"),
    ],
)
def test_known_errors_have_their_own_remedy(text: str, word: str) -> None:
    assert word in hint_for(text)


def test_only_what_qemu_said_itself_is_kept_of_its_log(folder: Path) -> None:
    said = "2026-01-01T00:00:00Z qemu-system-x86_64: terminating on signal 15 from pid 1 (init)"
    (folder / "x.log").write_text(f"LC_ALL=C \\\n/usr/bin/qemu-system-x86_64 \\\n-name guest=x \\\n{said}\n")
    assert last_words("x", folder) == [said]
    remove_log("x", folder)
    remove_log("x", folder)
    assert last_words("x", folder) == []


def test_every_finding_that_is_not_well_has_a_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "PROGRAMS", {**host.PROGRAMS, "isomark-no-such-program": "nothing"})
    found = findings(folder / "state")
    assert {finding.subject for finding in found} >= {"libvirtd", "virtlogd", "/dev/kvm", "guest kernel", "disk space"}
    assert next(one for one in found if one.subject == "isomark-no-such-program").severity == "problem"
    assert next(one for one in found if one.subject == "guest kernel").remedy == "script/bootstrap"
    assert all(finding.remedy for finding in found if finding.severity in {"warning", "problem"})


def test_kvm_is_proven_by_booting_and_the_answer_remembered(lab: Lab) -> None:
    if host.kvm_state() != "open" or host.missing_programs():
        pytest.skip("no /dev/kvm that could be tried")
    try:
        kernel = find_kernel(state_directory())
    except DriverUnavailable as error:
        skip_or_fail("kvm", error.message)
        raise
    path = proof.proof_path(lab.state, kernel)
    outcomes = [(_refusal(lab, kernel), path.stat().st_mtime_ns) for _ in range(2)]
    assert outcomes[0] == outcomes[1], "the second time it is looked up"
    shown = proof.remembered(lab.state)
    assert shown is not None
    assert shown.works == (outcomes[0][0] == "")
    assert json.loads(path.read_text())["seconds"] > 0


def _refusal(lab: Lab, kernel: GuestKernel) -> str:
    """Why KVM is refused, with its remedy; empty where a guest boots on it."""
    try:
        proof.require_kvm(lab, kernel)
    except DriverUnavailable as error:
        if "no guest boots on it" not in error.message or "the driver qemu" not in error.hint:
            pytest.fail(f"says neither what failed nor what still works: {error.message}; {error.hint}")
        return error.message
    return ""
