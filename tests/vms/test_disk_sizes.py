"""The sizes of a virtual server's image, against what the kernel, qemu-img and a real guest say."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import usable

from bench.abilities import OwnDisk
from bench.dialogue import Dialogue
from bench.driver import Lab, Launch
from bench.drivers import load_driver
from bench.errors import ImageError
from bench.model import Limits, WorkloadImage
from bench.units import MIB
from vms.ext4 import used_bytes

READY_SECONDS = 180.0
FORMS = [
    pytest.param({}, 1 * MIB, id="direct"),
    # its journal and its host keys are written as it boots
    pytest.param({"guest": "full", "firmware": "bios"}, 64 * MIB, id="full", marks=pytest.mark.full),
]


# --- the superblock


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    content = tmp_path / "tree"
    (content / "deep/er").mkdir(parents=True)
    (content / "deep/er/large").write_bytes(os.urandom(3_000_000))
    for number in range(300):
        (content / f"deep/{number}").write_text("x" * number)
    return content


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("options", [(), ("-b", "1024"), ("-O", "^64bit"), ("-O", "^has_journal", "-N", "4096")])
@pytest.mark.parametrize("offset", [0, 18 * MIB])
def test_it_says_what_statfs_says_of_the_mounted_file_system(
    options: tuple[str, ...], offset: int, tree: Path, tmp_path: Path
) -> None:
    disk, place = tmp_path / "disk", tmp_path / "mounted"
    size = 200 * MIB
    with disk.open("xb") as file:
        file.truncate(offset + size)
    made = ["mke2fs", "-q", "-F", "-t", "ext4", *options, "-E", f"offset={offset}", "-d", str(tree)]
    subprocess.run([*made, str(disk), f"{size >> 10}k"], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", f"ro,noload,loop,offset={offset}", str(disk), str(place)], check=True)
    try:
        status = os.statvfs(place)
        told = (status.f_blocks - status.f_bfree) * status.f_frsize
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert told > 3_000_000
    assert used_bytes(disk, offset) == told


def test_a_file_system_whose_overhead_nobody_wrote_down_is_not_known(tree: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(disk), "64m"], check=True)
    assert used_bytes(disk) is not None
    with disk.open("r+b") as file:
        file.seek(1024 + 0x248)
        file.write(bytes(4))
    assert used_bytes(disk) is None


@pytest.mark.parametrize("content", [b"", b"x" * 4096])
def test_what_is_no_file_system_is_an_error(content: bytes, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(content)
    with pytest.raises(ImageError, match="no ext4 file system"):
        used_bytes(disk)


# --- a guest


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("options", "boot_writes"), FORMS)
def test_the_sizes_are_those_that_the_guest_and_qemu_img_see(
    options: Mapping[str, object], boot_writes: int, workload_image: WorkloadImage, lab: Lab
) -> None:
    with usable("qemu", lambda: load_driver("qemu", lab, options)) as driver:
        image = driver.build(workload_image)
        script = "stat -f -c '%b %f %S' /; cat /sys/class/block/vda/size; echo isomark ready; read quit"
        request = Launch(
            f"iso-{lab.journal.owner.id}-s", ("/bin/sh", "-c", script), {"PATH": "/usr/bin:/bin"}, Limits(), None
        )
        with driver.start(image, request) as instance:
            Dialogue(instance, READY_SECONDS).ready()
            numbers = [line.split() for line in instance.tail if line.replace(" ", "").isdigit()]
            assert isinstance(instance, OwnDisk)
            own = instance.own_disk_bytes()
            overlay = lab.scratch / request.name / "disk.qcow2"
            described = json.loads(
                subprocess.run(
                    ["qemu-img", "info", "-U", "--output=json", str(overlay)], capture_output=True, check=True
                ).stdout
            )
            files = [path for path in overlay.parent.iterdir() if path.is_file()]
            allocated = sum(path.stat().st_blocks * 512 for path in files)
    (blocks, free, block_bytes), (sectors,) = ([int(number) for number in line] for line in numbers[-2:])
    assert image.used_bytes is not None
    assert image.used_bytes <= (blocks - free) * block_bytes <= image.used_bytes + boot_writes
    assert image.virtual_bytes == sectors * 512 == described["virtual-size"]
    assert len(files) >= 2
    assert 0 < own <= allocated <= own + boot_writes  # it may write between the two looks
