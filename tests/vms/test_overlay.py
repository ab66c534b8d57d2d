from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import skip_or_fail
from hypothesis import given, settings
from hypothesis import strategies as st

from vms.qcow2 import write_overlay

KIB = 1024


def qemu_img(*arguments: str) -> str:
    try:
        return subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        skip_or_fail("qemu", "qemu-img is not installed")
        raise


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 200_000).map(lambda count: count * 512 * KIB))
def test_qemu_img_finds_no_fault_in_an_overlay_of_any_size(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    folder = tmp_path_factory.mktemp("overlay")
    backing, overlay = folder / "backing disk.raw", folder / "overlay.qcow2"
    with backing.open("wb") as file:
        file.truncate(size)
    write_overlay(overlay, backing, size)
    qemu_img("check", str(overlay))
    told = json.loads(qemu_img("info", "--output=json", str(overlay)))
    assert told["virtual-size"] == size
    assert told["full-backing-filename"] == str(backing)
    assert told["backing-filename-format"] == "raw"


def test_the_overlay_shows_its_backing_and_keeps_what_is_written(tmp_path: Path) -> None:
    backing, overlay = tmp_path / "backing.raw", tmp_path / "overlay.qcow2"
    content = os.urandom(1024 * KIB)
    backing.write_bytes(content)
    write_overlay(overlay, backing, len(content))
    script = ["-c", "write -P 0xab 64k 64k", "-c", "read -P 0xab 64k 64k", str(overlay)]
    try:
        wrote = subprocess.run(["qemu-io", "-f", "qcow2", *script], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        skip_or_fail("qemu", "qemu-io is not installed")
        raise
    assert "verification failed" not in wrote.stdout
    qemu_img("check", str(overlay))
    qemu_img("convert", "-O", "raw", str(overlay), str(tmp_path / "flat.raw"))
    flat = (tmp_path / "flat.raw").read_bytes()
    assert flat == content[: 64 * KIB] + b"\xab" * 64 * KIB + content[128 * KIB :]
    assert backing.read_bytes() == content


def test_an_overlay_is_never_written_over_another(tmp_path: Path) -> None:
    (tmp_path / "overlay").touch()
    with pytest.raises(FileExistsError):
        write_overlay(tmp_path / "overlay", tmp_path / "backing", 512)
