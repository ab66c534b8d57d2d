"""Disk images that somebody else made: what is taken, and what would reach into the host."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest
from conftest import skip_or_fail
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import ImageError
from vms.full.user_image import inspect_image, parse_header
from vms.qcow2 import write_overlay

MIB = 1024**2


def create(path: Path, *arguments: str, form: str = "qcow2", size: str = "64M") -> Path:
    try:
        command = ["qemu-img", "create", "-q", "-f", form, *arguments, str(path), size]
        subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        skip_or_fail("qemu", "qemu-img is not installed")
    return path


def raw(path: Path) -> Path:
    path.write_bytes(bytes(510) + b"\x55\xaa" + bytes(MIB))
    return path


@pytest.mark.parametrize(
    "options", ["compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "compression_type=zstd"]
)
def test_what_qemu_img_makes_is_taken_and_its_size_known(options: str, tmp_path: Path) -> None:
    image = inspect_image(create(tmp_path / "image", "-o", options))
    assert (image.format, image.size_bytes, image.backing) == ("qcow2", 64 * MIB, None)


def test_a_raw_disk_is_known_by_its_boot_record(tmp_path: Path) -> None:
    image = inspect_image(raw(tmp_path / "image"))
    assert (image.format, image.size_bytes) == ("raw", 512 + MIB)


def test_an_overlay_on_a_qcow2_image_opens_as_qemu_expects(tmp_path: Path) -> None:
    image = inspect_image(create(tmp_path / "image"))
    write_overlay(tmp_path / "overlay", image.path, image.size_bytes, image.format)
    subprocess.run(["qemu-img", "check", "-q", str(tmp_path / "overlay")], check=True)
    shown = subprocess.run(["qemu-img", "info", str(tmp_path / "overlay")], capture_output=True, text=True, check=True)
    assert "backing file format: qcow2" in shown.stdout


def test_a_backing_file_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    create(tmp_path / "base")
    image = create(tmp_path / "image", "-b", "base", "-F", "qcow2")
    with pytest.raises(ImageError, match="another file, 'base'") as caught:
        inspect_image(image)
    assert "qemu-img convert" in caught.value.hint
    allowed = inspect_image(image, allow_backing=True)
    assert allowed.backing is not None
    assert allowed.backing.path == tmp_path / "base"


def test_the_hosts_files_cannot_be_had_as_backing_file(tmp_path: Path) -> None:
    image = create(tmp_path / "image", "-u", "-b", "/etc/shadow", "-F", "raw")
    with pytest.raises(ImageError, match="/etc/shadow"):
        inspect_image(image)
    with pytest.raises(ImageError, match="no disk that could boot"):
        inspect_image(image, allow_backing=True)


@pytest.mark.parametrize("name", ['json:{"driver":"nbd"}', "nbd://198.51.100.1/x", "fat:rw:/etc"])
def test_a_backing_name_that_is_no_file_is_always_refused(name: str, tmp_path: Path) -> None:
    image = create(tmp_path / "image", "-u", "-b", name, "-F", "raw")
    with pytest.raises(ImageError, match="no file"):
        inspect_image(image, allow_backing=True)


def test_an_image_that_is_its_own_backing_file_ends_the_search(tmp_path: Path) -> None:
    image = create(tmp_path / "image", "-u", "-b", "image", "-F", "qcow2")
    with pytest.raises(ImageError, match="chain"):
        inspect_image(image, allow_backing=True)


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    image = create(tmp_path / "image", "-o", f"data_file={tmp_path / 'data'}")
    with pytest.raises(ImageError, match="external data"):
        inspect_image(image, allow_backing=True)


@pytest.mark.parametrize(
    ("offset", "field", "reason"),
    [
        (4, struct.pack(">I", 9), "no version 9"),
        (20, struct.pack(">I", 40), "clusters"),
        (24, struct.pack(">Q", 1 << 62), "claims to be"),
        (24, struct.pack(">Q", 0), "claims to be"),
        (32, struct.pack(">I", 1), "encrypted"),
        (36, struct.pack(">I", 0xFFFFFFFF), "first table"),
        (40, struct.pack(">Q", 1 << 60), "first table"),
        (8, struct.pack(">QI", 1 << 40, 10), "name of its backing file"),
        (8, struct.pack(">QI", 200, 1 << 30), "name of its backing file"),
        (72, struct.pack(">Q", 1 << 1), "corrupt"),
        (72, struct.pack(">Q", 1 << 40), "feature 40"),
    ],
)
def test_a_header_that_lies_is_refused_with_the_reason(offset: int, field: bytes, reason: str, tmp_path: Path) -> None:
    image = create(tmp_path / "image")
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(field)
    with pytest.raises(ImageError, match=reason):
        inspect_image(image)


@pytest.mark.parametrize("form", ["vmdk", "vdi", "vhdx", "vpc"])
def test_other_formats_are_told_by_their_name(form: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        inspect_image(create(tmp_path / "image", form=form))
    assert caught.value.hint


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ImageError, match="no regular file"):
            inspect_image(path)
    with pytest.raises(ImageError, match="No such file"):
        inspect_image(tmp_path / "none")


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = create(tmp_path / "image").read_bytes()
    for length in (0, 3, 4, 71, 73, 100):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ImageError):
            inspect_image(tmp_path / "cut")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**70))
def test_no_header_does_anything_but_parse_or_be_refused(rest: bytes, length: int) -> None:
    try:
        header = parse_header(b"QFI\xfb" + rest, length)
    except ValueError:
        return
    assert header.size_bytes > 0
