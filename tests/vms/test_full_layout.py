"""Partition table, boot record and EFI partition, as other programs read them."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import uuid
from pathlib import Path

import pytest
from conftest import skip_or_fail

from bench.units import MIB
from vms.full import gpt
from vms.full.disk import write_frame

DISK = uuid.UUID("6ba7b814-9dad-11d1-80b4-00c04fd430c8")
SIZE = 200 * MIB


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    for program in ("grub-mkimage", "mkfs.vfat", "mcopy"):
        if shutil.which(program) is None:
            skip_or_fail("qemu-full", f"{program} is not installed")
    path = tmp_path / "disk"
    write_frame(path, SIZE, DISK)
    return path


def test_the_partition_table_is_as_meant(frame: Path) -> None:
    columns = "START,SECTORS,NAME,TYPE"
    shown = subprocess.run(["partx", "-P", "-o", columns, str(frame)], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [
        f'START="2048" SECTORS="2048" NAME="bios" TYPE="{gpt.BIOS_BOOT}"',
        f'START="4096" SECTORS="32768" NAME="efi" TYPE="{gpt.EFI_SYSTEM}"',
        f'START="36864" SECTORS="{(SIZE - 19 * MIB) // 512}" NAME="root" TYPE="{gpt.LINUX_ROOT}"',
    ]


def test_the_copy_at_the_end_does_when_the_one_at_the_start_is_lost(frame: Path) -> None:
    if shutil.which("sfdisk") is None:
        pytest.skip("sfdisk is not installed")
    with frame.open("r+b") as file:
        file.seek(512)
        file.write(bytes(33 * 512))
    shown = subprocess.run(["sfdisk", "-J", str(frame)], capture_output=True, text=True, check=True)
    table = json.loads(shown.stdout)["partitiontable"]
    assert uuid.UUID(table["id"]) == DISK
    assert [partition["name"] for partition in table["partitions"]] == ["bios", "efi", "root"]


def test_the_same_disk_has_the_same_bytes(frame: Path, tmp_path: Path) -> None:
    write_frame(tmp_path / "other", SIZE, DISK)
    assert (tmp_path / "other").read_bytes() == frame.read_bytes()


def test_no_clock_shows_in_the_efi_partition(frame: Path) -> None:
    shown = subprocess.run(["mdir", "-i", f"{frame}@@2M", "::/EFI/BOOT"], capture_output=True, text=True, check=True)
    assert shown.stdout.count("2023-06-10") == 3


def test_the_boot_record_points_at_the_loader_and_keeps_the_table(frame: Path) -> None:
    with frame.open("rb") as file:
        record = file.read(512)
        file.seek(MIB)
        loader = file.read(512)
    assert record[510:] == b"\x55\xaa"
    assert record[450] == 0xEE
    assert struct.unpack_from("<Q", record, 0x5C) == (2048,)
    start, length, segment = struct.unpack_from("<QHH", loader, 500)
    assert (start, segment) == (2049, 0x820)
    assert 50 < length < 2047


def test_the_efi_partition_holds_a_program_where_firmware_looks(frame: Path) -> None:
    shown = subprocess.run(
        ["mtype", "-i", f"{frame}@@2M", "::/EFI/BOOT/BOOTX64.EFI"], capture_output=True, check=True
    ).stdout
    assert shown.startswith(b"MZ")
    assert b"isomark" in shown


@pytest.mark.parametrize(
    ("offset", "length"),
    [(512, MIB), (MIB, SIZE), (SIZE - 512 * 34, 512 * 2), (3 * MIB, MIB)],
    ids=["over the table", "past the end", "over the copy", "over another"],
)
def test_a_partition_that_does_not_fit_is_refused(offset: int, length: int) -> None:
    other = gpt.Partition(gpt.EFI_SYSTEM, "other", 2 * MIB, 2 * MIB)
    with pytest.raises(ValueError, match="does not fit"):
        gpt.partition_table(DISK, SIZE, [other, gpt.Partition(gpt.BIOS_BOOT, "bad", offset, length)])
