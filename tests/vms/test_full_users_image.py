"""A user's disk image on its way to a guest: taken in, told of, and refused before QEMU or libvirt sees it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from conftest import skip_or_fail

from bench.driver import Driver, Lab, Launch
from bench.drivers import load_driver
from bench.errors import DriverUnavailable, HostError, ImageError, InstanceError, OptionsError
from bench.model import Image, Limits, WorkloadImage
from bench.network import example_lease
from vms.connection import User
from vms.driver import qemu, xen_hvm, xen_pv
from vms.forms import build_form
from vms.full import taken_image
from vms.full.taken_image import image_sha256, take_image
from vms.guest_files import LocalFiles, write_trial
from vms.options import DomainOptions
from vms.qemu import QEMU

MIB = 1024**2


def qcow2(path: Path, *arguments: str, form: str = "qcow2") -> Path:
    try:
        command = ["qemu-img", "create", "-q", "-f", form, *arguments, str(path), "64M"]
        subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        skip_or_fail("qemu", "qemu-img is not installed")
    return path


def raw(path: Path) -> Path:
    """A sparse disk: a boot record, a hole, some data."""
    with path.open("wb") as file:
        file.write(bytes(510) + b"\x55\xaa")
        file.seek(32 * MIB)
        file.write(os.urandom(MIB))
    return path


@pytest.fixture
def bits(tmp_path: Path) -> WorkloadImage:
    (tmp_path / "tree/isomark/boot").mkdir(parents=True)
    (tmp_path / "tree/isomark/boot/run").write_text("#!/bin/sh\necho isomark ready\n")
    return WorkloadImage("x", f"sha256:{'5' * 64}", tmp_path, tmp_path / "tree", 1, 1, 1)


@pytest.fixture
def driver(lab: Lab) -> Iterator[Driver]:
    made = load_driver("qemu", lab)
    yield made
    made.close()


def options(image: Path) -> dict[str, object]:
    return {"guest": "image", "firmware": "bios", "image": str(image)}


def launch(name: str = "iso-u-1", *, disk_bytes: int = 16 * MIB) -> Launch:
    return Launch(name, ("/isomark/boot/run",), {}, Limits(disk_bytes=disk_bytes), example_lease())


def built(image: Path, bits: WorkloadImage, state: Path) -> Image:
    return build_form(bits, state, QEMU, DomainOptions(guest="image", firmware="bios", image=image))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "no regular file"),
        (lambda path: path.write_text("not a disk"), "no disk that could boot"),
        (lambda path: qcow2(path, form="vmdk"), "VMDK"),
        (lambda path: qcow2(path, form="vdi"), "VDI"),
        (lambda path: qcow2(path, "-u", "-b", "/etc/shadow", "-F", "raw"), "/etc/shadow"),
        (lambda path: qcow2(path, "-o", f"data_file={path}.data"), "external data"),
    ],
    ids=["missing", "directory", "text", "vmdk", "vdi", "shadow", "data-file"],
)
def test_what_is_no_image_of_its_own_is_told_with_a_remedy_when_the_suite_is_checked(
    make: object, reason: str, lab: Lab, tmp_path: Path
) -> None:
    assert callable(make)
    make(tmp_path / "disk")
    with pytest.raises(OptionsError, match=reason) as caught:
        load_driver("qemu", lab, options(tmp_path / "disk"))
    ((key, told),) = caught.value.faults
    assert key == "image"
    assert "; " in told, "the remedy stands behind the reason"


@pytest.mark.parametrize(
    ("table", "key", "reason"),
    [
        ({"guest": "image", "firmware": "bios"}, "image", "absolute path"),
        ({"guest": "image", "firmware": "bios", "image": "disk.qcow2"}, "image", "absolute path"),
        ({"guest": "image", "image": "/disk.qcow2"}, "firmware", "bios or ovmf"),
        ({"image": "/disk.qcow2"}, "image", 'guest = "image"'),
        ({"guest": "full", "firmware": "bios", "image": "/disk.qcow2"}, "image", 'guest = "image"'),
    ],
)
def test_options_that_do_not_go_together_are_told_by_their_key(
    table: dict[str, object], key: str, reason: str, lab: Lab
) -> None:
    with pytest.raises(OptionsError) as caught:
        load_driver("qemu", lab, table)
    assert key in dict(caught.value.faults)
    assert reason in dict(caught.value.faults)[key]


def test_the_line_of_the_suite_is_told_before_anything_is_built(tmp_path: Path) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text(
        'name = "mine"\ntitle = "mine"\nworkloads = ["boot"]\ndrivers = ["qemu"]\ntrials = 1\n[options.qemu]\n'
        'guest = "image"\nfirmware = "bios"\nimage = "/nonexistent.qcow2"\n'
    )
    command = [sys.executable, "-m", "bench.cli", "run", str(suite)]
    environment = {**os.environ, "ISOMARK_STATE": str(tmp_path / "state")}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 2
    assert "line 9: options.qemu.image: cannot open /nonexistent.qcow2: No such file" in ran.stderr
    assert not (tmp_path / "state/images").exists()


def test_xen_has_a_full_guest_with_a_bios_and_no_other(lab: Lab, tmp_path: Path) -> None:
    xen_hvm(lab).configured({"guest": "full", "firmware": "bios"}).close()
    for driver, table in (
        (xen_hvm(lab), {"guest": "full", "firmware": "ovmf"}),
        (xen_hvm(lab), options(raw(tmp_path / "disk"))),
        (xen_pv(lab), {"guest": "full", "firmware": "bios"}),
    ):
        with pytest.raises(OptionsError):
            driver.configured(table)


def test_it_is_copied_once_under_the_name_of_its_content_with_its_holes(tmp_path: Path) -> None:
    source = raw(tmp_path / "disk")
    taken = take_image(source, tmp_path / "disks")
    assert taken.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert taken.image.path.name == f"{taken.sha256}.raw"
    assert taken.image.path.read_bytes() == source.read_bytes()
    assert taken.image.path.stat().st_blocks * 512 < 8 * MIB
    inode = taken.image.path.stat().st_ino
    assert take_image(source, tmp_path / "disks").image.path.stat().st_ino == inode
    assert [path.name for path in (tmp_path / "disks").iterdir()] == [taken.image.path.name]


def test_a_copy_is_nobody_s_to_read_but_qemu_s(lab: Lab, bits: WorkloadImage, tmp_path: Path) -> None:
    source = raw(tmp_path / "disk")
    configured = qemu(lab).configured(options(source))
    try:
        configured.check()
        location = configured.build(bits).location
        user = configured._connection.qemu_user()
    except DriverUnavailable as error:
        skip_or_fail("qemu", error.message)
    finally:
        configured.close()
    status = location.stat()
    location.unlink()
    assert status.st_mode & 0o777 == 0o400
    assert location.parent.stat().st_mode & 0o777 == 0o711
    assert status.st_uid == (os.geteuid() if user is None else user.uid)


def test_a_copy_is_nobody_s_to_read_while_it_is_made_and_nobody_s_to_change_after(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modes = []
    digest = taken_image._sha256

    def looked_at(path: Path) -> str:
        modes.append(path.stat().st_mode & 0o777)
        return digest(path)

    source = raw(tmp_path / "disk")
    source.chmod(0o644)
    monkeypatch.setattr(taken_image, "_sha256", looked_at)
    taken = take_image(source, tmp_path / "disks")
    assert modes == [0o644, 0o600], "the source, then the copy under its temporary name"
    assert taken.image.path.stat().st_mode & 0o777 == 0o400


def test_a_copy_that_cannot_be_given_to_qemu_is_told_with_a_remedy(
    lab: Lab, bits: WorkloadImage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    image = built(raw(tmp_path / "disk"), bits, tmp_path / "state")
    monkeypatch.setattr(os, "chown", refused)
    with pytest.raises(HostError, match="user 64999: Operation not permitted") as caught:
        LocalFiles(lab, lambda: User(64999, 64999)).keep(image)
    assert "run as root" in caught.value.hint
    LocalFiles(lab, lambda: None).keep(image)


def test_an_image_that_has_changed_is_another_and_guests_on_the_old_one_do_not_notice(
    bits: WorkloadImage, tmp_path: Path
) -> None:
    source = raw(tmp_path / "disk")
    before = built(source, bits, tmp_path / "state")
    content = before.location.read_bytes()
    with source.open("r+b") as file:
        file.seek(32 * MIB)
        file.write(os.urandom(16))
    after = built(source, bits, tmp_path / "state")
    assert before.digest != after.digest == f"sha256:{image_sha256(source)}"
    assert before.location.read_bytes() == content


def test_the_record_says_which_image_it_was_and_the_identity_depends_on_it(
    driver: Driver, bits: WorkloadImage, lab: Lab, tmp_path: Path
) -> None:
    source = raw(tmp_path / "disk")
    image = built(source, bits, tmp_path / "state")
    assert image.parts["image"] == str(source)
    assert image.parts["file bytes"] == str(33 * MIB)
    assert image.virtual_bytes == 33 * MIB
    assert image.parts["image sha256"] == image_sha256(source)
    assert image.compressed_bytes is None
    try:
        driver.check()
    except DriverUnavailable as error:
        skip_or_fail("qemu", error.message)
    configured = load_driver("qemu", lab, options(source))
    described = configured.describe()
    configured.close()
    assert described["image sha256"] == image.parts["image sha256"]
    assert described["guest kernel"] == "that of the image"
    assert str(source) in described["parity"]
    assert str(source) not in str({key: value for key, value in described.items() if key != "parity"}), (
        "the same image in another place gives comparable results"
    )


def test_an_image_that_changes_while_it_is_read_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = raw(tmp_path / "disk")
    copy = taken_image._copy

    def written_to_meanwhile(source: Path, target: Path) -> None:
        with source.open("r+b") as file:
            file.seek(32 * MIB)
            file.write(b"x" * 16)
        copy(source, target)

    monkeypatch.setattr(taken_image, "_copy", written_to_meanwhile)
    with pytest.raises(ImageError, match="changed while it was read"):
        take_image(source, tmp_path / "disks")
    assert list((tmp_path / "disks").iterdir()) == []


def test_an_image_exchanged_after_the_suite_was_checked_is_refused_too(
    lab: Lab, bits: WorkloadImage, tmp_path: Path
) -> None:
    source = raw(tmp_path / "disk")
    configured = load_driver("qemu", lab, options(source))
    source.unlink()
    qcow2(source, "-u", "-b", "/etc/shadow", "-F", "raw")
    with pytest.raises(ImageError, match="/etc/shadow"):
        configured.build(bits)
    configured.close()


def test_a_copy_that_somebody_gave_a_backing_file_never_reaches_libvirt(
    lab: Lab, bits: WorkloadImage, tmp_path: Path
) -> None:
    source = qcow2(tmp_path / "disk")
    image = built(source, bits, tmp_path / "state")
    image.location.unlink()
    qcow2(image.location, "-u", "-b", "/etc/shadow", "-F", "raw")
    configured = qemu(lab).configured(options(source))
    request = launch(f"iso-{lab.journal.owner.id}-u")
    try:
        with pytest.raises(InstanceError, match="/etc/shadow"):
            configured.start(image, request)
    finally:
        configured.close()
    assert not (lab.scratch / request.name).exists()


@pytest.mark.parametrize("make", [raw, qcow2])
def test_a_trial_writes_to_an_overlay_with_the_room_that_it_was_granted(
    make: object, bits: WorkloadImage, tmp_path: Path
) -> None:
    assert callable(make)
    source = make(tmp_path / "disk")
    image = built(source, bits, tmp_path / "state")
    (tmp_path / "trial").mkdir()
    overlay, seed = write_trial(image, launch(), tmp_path / "trial", PurePosixPath(image.location))
    shown = subprocess.run(["qemu-img", "info", str(overlay)], capture_output=True, text=True, check=True).stdout
    assert image.virtual_bytes is not None
    assert f"({image.virtual_bytes + 16 * MIB} bytes)" in shown
    assert f"backing file format: {image.parts['format']}" in shown
    subprocess.run(["qemu-img", "check", "-q", str(overlay)], check=True)
    assert b"CD001" in seed.read_bytes()[:40_000]


def test_under_uefi_each_trial_has_variables_of_its_own(bits: WorkloadImage, tmp_path: Path) -> None:
    uefi = DomainOptions(guest="image", firmware="ovmf", image=raw(tmp_path / "disk"))
    try:
        image = build_form(bits, tmp_path / "state", QEMU, uefi)
    except DriverUnavailable as error:
        skip_or_fail("full", error.message)
    assert "secboot" not in image.parts["UEFI"], "that one starts only what somebody has signed"
    (tmp_path / "trial").mkdir()
    own = write_trial(image, launch(), tmp_path / "trial", PurePosixPath(image.location))[-1]
    assert own.read_bytes() == Path(image.parts["UEFI variables"]).read_bytes()
    assert own.parent == tmp_path / "trial"


def test_a_payload_that_no_seed_can_hold_is_told_when_the_form_is_built(bits: WorkloadImage, tmp_path: Path) -> None:
    (bits.tree / "isomark/large").write_bytes(bytes(2 * MIB))
    with pytest.raises(ImageError, match="larger than 1 MiB"):
        built(raw(tmp_path / "disk"), replace(bits), tmp_path / "state")
