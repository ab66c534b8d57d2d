"""A workload's image as a whole server: made and looked into; test_full_servers.py boots it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import skip_or_fail

from bench.driver import Lab, Launch
from bench.errors import HostError, ImageError, InstanceError
from bench.model import Limits, WorkloadImage
from bench.network import example_lease
from vms.full.disk import FullDisk, make_full_disk
from vms.full.trial_disk import trial_disk, write_trial_disk
from vms.kernel import GuestKernel

ROOT_OFFSET = 18 * 1024**2
ODD = 'it\'s $HOME "and"\nmore\t;'


@pytest.fixture(scope="module")
def disk(lab: Lab, workload_image: WorkloadImage, kernel: GuestKernel) -> FullDisk:
    if os.geteuid() != 0:
        skip_or_fail("qemu-full", "only root can install a server")
    try:
        return make_full_disk(workload_image, kernel, lab.state / "disks")
    except HostError as error:
        skip_or_fail("qemu-full", f"{error.message} ({error.hint})")
        raise


def launch(*command: str, **environment: str) -> Launch:
    return Launch("t1-full", command, {"PATH": "/usr/sbin:/usr/bin", **environment}, Limits(), example_lease())


def debugfs(disk: FullDisk, request: str) -> str:
    command = ["debugfs", "-R", request, f"{disk.path}?offset={ROOT_OFFSET}"]
    return subprocess.run(command, capture_output=True, check=True, text=True, errors="replace").stdout


@pytest.mark.full
def test_the_root_file_system_has_no_fault_and_the_same_payload_as_every_other_guest(
    disk: FullDisk, workload_image: WorkloadImage
) -> None:
    checked = subprocess.run(["e2fsck", "-fn", f"{disk.path}?offset={ROOT_OFFSET}"], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert debugfs(disk, "cat /isomark/boot/run") == (workload_image.tree / "isomark/boot/run").read_text()
    assert "isomark loader" in debugfs(disk, "cat /boot/grub/grub.cfg")


@pytest.mark.full
def test_no_two_servers_share_an_identity(disk: FullDisk) -> None:
    assert debugfs(disk, "cat /etc/machine-id") == ""
    assert 'dest: "/etc/machine-id"' in debugfs(disk, "stat /var/lib/dbus/machine-id")
    assert "ssh_host" not in debugfs(disk, "ls /etc/ssh")
    assert "random-seed" not in debugfs(disk, "ls /var/lib/systemd")


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_same_image_and_packages_give_the_same_bytes(
    disk: FullDisk, workload_image: WorkloadImage, kernel: GuestKernel, tmp_path: Path
) -> None:
    again = make_full_disk(workload_image, kernel, tmp_path / "disks")
    # qemu-img knows holes; comparing 17 GB byte by byte takes a minute
    same = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(disk.path), str(again.path)]
    compared = subprocess.run(same, capture_output=True, text=True, check=False)
    assert compared.returncode == 0, compared.stdout


@pytest.mark.full
def test_what_the_images_packages_would_start_no_server_starts(disk: FullDisk) -> None:
    wanted = debugfs(disk, "ls /etc/systemd/system/multi-user.target.wants")
    assert "ssh.service" in wanted
    assert "isomark-workload.service" in wanted
    assert "nginx" not in wanted


@pytest.mark.full
def test_making_it_leaves_neither_mount_nor_file_and_does_not_touch_the_tree(
    disk: FullDisk, workload_image: WorkloadImage
) -> None:
    assert [path.name for path in disk.path.parent.iterdir() if path.name.startswith(".")] == []
    assert str(disk.path.parent) not in Path("/proc/self/mountinfo").read_text()
    assert not (workload_image.tree / "usr/sbin/sshd").exists()
    assert not (workload_image.tree / "usr/sbin/policy-rc.d").exists()


def test_a_tree_that_is_no_debian_is_an_error_that_leaves_nothing(kernel: GuestKernel, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("grub-mkimage") is None:
        skip_or_fail("qemu-full", "needs root and GRUB")
    (tmp_path / "tree/proc").mkdir(parents=True)
    image = WorkloadImage("not-debian", f"sha256:{'7' * 64}", tmp_path, tmp_path / "tree", 1, 1, 1)
    with pytest.raises(ImageError, match="not-debian") as caught:
        make_full_disk(image, kernel, tmp_path / "disks")
    assert caught.value.hint
    assert list((tmp_path / "disks").iterdir()) == []


def test_the_trial_disk_is_a_script_of_whole_sectors_that_sh_reads_back(tmp_path: Path) -> None:
    disk = tmp_path / "trial"
    write_trial_disk(disk, launch("/bin/sh", "-c", 'printf "%s" "$ODD"', ODD=ODD))
    assert disk.stat().st_size % 512 == 0
    assert disk.read_bytes().startswith(b"NAME=")
    ran = subprocess.run(["sh", "-c", '. "$1"; payload', "sh", str(disk)], capture_output=True, text=True, check=True)
    assert ran.stdout == ODD


def test_a_command_that_no_process_could_have_is_refused() -> None:
    with pytest.raises(InstanceError):
        trial_disk(launch("/bin/sh", "a\0b"))


def test_preparing_a_trial_is_a_matter_of_milliseconds(tmp_path: Path) -> None:
    began = time.monotonic()
    for number in range(20):
        write_trial_disk(tmp_path / str(number), launch("/isomark/boot/run"))
    # 50 ms are allowed for one, overlay included; this is a limit for hangs, not a measurement
    assert time.monotonic() - began < 20
