"""The two forms of an image that virtual servers start from, as the record has them."""

from __future__ import annotations

from pathlib import Path

from bench.model import Image, WorkloadImage
from vms.disk import make_disk
from vms.domain import Platform
from vms.full.disk import make_full_disk
from vms.initramfs import boot_files
from vms.kernel import find_kernel


def build_direct(image: WorkloadImage, state: Path, platform: Platform) -> Image:
    """Make the disk of ``image`` and the kernel and initramfs of ``platform``, or find those made before.

    Raises:
        ImageError: the disk cannot be made.
        HostError: a program is missing, or there is no space.
        DriverUnavailable: there is no guest kernel or no busybox.
    """
    kernel = find_kernel(state)
    booted, initramfs = boot_files(state, kernel, platform)
    disk = make_disk(image, state / "disks")
    extra = (booted, initramfs)
    return Image(
        digest=image.digest,
        form="ext4 disk, kernel and initramfs",
        location=disk.path,
        # what is shipped is the kernel as packaged, what is kept and booted the one taken out of it
        compressed_bytes=disk.compressed_bytes + sum(path.stat().st_size for path in (kernel.image, initramfs)),
        unpacked_bytes=image.unpacked_bytes + sum(path.stat().st_size for path in extra),
        on_disk_bytes=disk.on_disk_bytes + sum(path.stat().st_blocks * 512 for path in extra),
        parts={
            "disk": str(disk.path),
            "kernel": str(booted),
            "kernel version": kernel.version,
            "initramfs": str(initramfs),
        },
    )


def build_full(image: WorkloadImage, state: Path, _platform: Platform) -> Image:
    """Make the server disk of ``image``, which every platform with firmware boots, or find the one made before.

    Raises:
        ImageError: the server cannot be made of the image.
        HostError: a program is missing, this is not root, or there is no space.
        DriverUnavailable: there is no guest kernel.
    """
    disk = make_full_disk(image, find_kernel(state), state / "disks")
    return Image(
        digest=image.digest,
        form="server disk with boot loader, kernel and systemd",
        location=disk.path,
        compressed_bytes=disk.compressed_bytes,
        unpacked_bytes=None,
        on_disk_bytes=disk.on_disk_bytes,
        parts={"disk": str(disk.path), "kernel version": disk.kernel_version},
    )
