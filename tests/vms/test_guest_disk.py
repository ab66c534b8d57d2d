"""The ext4 disk of an image: what it holds, and that it is complete or absent."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import skip_or_fail

from bench.errors import HostError, ImageError
from bench.model import WorkloadImage
from vms.cache import keep, making
from vms.disk import Disk, make_disk
from vms.host import missing_programs


@pytest.fixture
def image(tmp_path: Path) -> WorkloadImage:
    if missing := {"mke2fs", "qemu-img"} & missing_programs().keys():
        skip_or_fail("qemu", f"{missing} not installed")
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/motd").write_bytes(b"welcome\n" * 5000)
    (tree / "etc/link").symlink_to("motd")
    (tree / "run me").write_bytes(os.urandom(100_000))
    (tree / "run me").chmod(0o4755)
    return WorkloadImage("small", f"sha256:{'5a' * 32}", tmp_path, tree, 1, 140_000, 150_000)


def debugfs(disk: Disk, request: str) -> bytes:
    return subprocess.run(["debugfs", "-R", request, str(disk.path)], capture_output=True, check=True).stdout


def test_the_disk_holds_the_tree_and_has_no_fault(image: WorkloadImage, tmp_path: Path) -> None:
    disk = make_disk(image, tmp_path / "disks")
    assert debugfs(disk, "cat /etc/motd") == (image.tree / "etc/motd").read_bytes()
    assert debugfs(disk, 'cat "/run me"') == (image.tree / "run me").read_bytes()
    assert b"Mode:  04755" in debugfs(disk, 'stat "/run me"')
    assert b'Fast link dest: "motd"' in debugfs(disk, "stat /etc/link")
    checked = subprocess.run(["e2fsck", "-fn", str(disk.path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_disk_is_large_for_the_guest_and_small_on_the_host(image: WorkloadImage, tmp_path: Path) -> None:
    disk = make_disk(image, tmp_path / "disks")
    assert disk.size_bytes > 16 * 1024**3
    assert 140_000 < disk.on_disk_bytes < 100 * 1024**2
    assert 100_000 < disk.compressed_bytes < disk.on_disk_bytes


def test_a_disk_is_made_once_and_the_same_tree_gives_the_same_bytes(image: WorkloadImage, tmp_path: Path) -> None:
    first = make_disk(image, tmp_path / "disks")
    stamp = first.path.stat().st_mtime_ns
    assert make_disk(image, tmp_path / "disks") == first
    assert first.path.stat().st_mtime_ns == stamp
    second = make_disk(image, tmp_path / "other")
    assert (second.size_bytes, second.path.stat().st_size) == (first.size_bytes, first.path.stat().st_size)
    # qemu-img knows holes (comparing 17 GB byte by byte takes a minute), which may lie elsewhere, as the host writes
    same = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(first.path), str(second.path)]
    subprocess.run(same, check=True, capture_output=True)


def test_threads_that_want_the_same_disk_get_one(image: WorkloadImage, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        disks = list(pool.map(lambda _: make_disk(image, tmp_path / "disks"), range(4)))
    assert len(set(disks)) == 1
    assert sorted(path.suffix for path in (tmp_path / "disks").iterdir()) == [".json", ".raw"]


def test_what_a_killed_process_left_unfinished_is_made_anew(image: WorkloadImage, tmp_path: Path) -> None:
    made = make_disk(image, tmp_path / "disks")
    torn = made.path.with_name(f".{made.path.name}.part")
    made.path.rename(torn)
    os.truncate(torn, 4096)
    assert make_disk(image, tmp_path / "disks").size_bytes == made.size_bytes
    assert not torn.exists()


def test_a_tree_that_is_gone_is_an_error_that_leaves_nothing(image: WorkloadImage, tmp_path: Path) -> None:
    gone = WorkloadImage("gone", image.digest, tmp_path, tmp_path / "none", 1, 1, 1)
    with pytest.raises(ImageError, match="mke2fs"):
        make_disk(gone, tmp_path / "disks")
    assert list((tmp_path / "disks").iterdir()) == []


def test_an_error_while_making_a_file_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), making(tmp_path / "new") as temporary:  # noqa: PT012
        assert temporary is not None
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_kept_file_is_not_made_again(tmp_path: Path) -> None:
    assert keep(tmp_path, "one", lambda: b"1").read_bytes() == b"1"
    assert keep(tmp_path, "one", lambda: b"2").read_bytes() == b"1"


def test_a_directory_that_cannot_be_written_is_told_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError) as caught:
        keep(tmp_path / "file", "one", lambda: b"1")
    assert "ISOMARK_STATE" in caught.value.hint
