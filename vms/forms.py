"""The forms of an image that virtual servers start from, as the record has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from bench.model import Image, WorkloadImage
from vms.disk import make_disk
from vms.domain import Platform
from vms.full.disk import ARGUMENTS as FULL_ARGUMENTS
from vms.full.disk import make_full_disk
from vms.full.firmware import uefi_files
from vms.full.seed import payload_files
from vms.full.taken_image import image_sha256, take_image
from vms.full.user_image import inspect_image
from vms.initramfs import boot_files
from vms.kernel import find_kernel
from vms.options import DomainOptions

KERNEL: Final = "kernel"
INITRAMFS: Final = "initramfs"
"""The parts that only the image of a direct guest has."""
PAYLOAD: Final = "payload"
"""The part that only a user's image has, which brings none: the tree that the seed takes it from."""
TREE: Final = "tree"
"""The part that only the image of a guest without a disk has."""
FORMAT: Final = "format"
SHA256: Final = "image sha256"
UEFI_CODE: Final = "UEFI"
UEFI_VARIABLES: Final = "UEFI variables"


def build_form(image: WorkloadImage, state: Path, platform: Platform, options: DomainOptions) -> Image:
    """Make what the guest of ``options`` starts from, or find what was made before.

    Raises:
        ImageError: a disk cannot be made of ``image``, or the user's is none that may be used.
        HostError: a program is missing, this is not root, or there is no space.
        DriverUnavailable: there is no guest kernel, no busybox or no UEFI.
    """
    make = _shared if options.root == "virtiofs" else _FORMS[options.guest]
    built = make(image, state, platform, options)
    if options.firmware != "ovmf":
        return built
    code, variables = uefi_files(state)
    return replace(built, parts={**built.parts, UEFI_CODE: str(code), UEFI_VARIABLES: str(variables)})


@dataclass(frozen=True)
class _Entered:
    """The kernel that a platform enters with its initramfs, as parts of an image, and what they add to its sizes."""

    compressed_bytes: int
    unpacked_bytes: int
    on_disk_bytes: int
    parts: Mapping[str, str]


def _entered(state: Path, platform: Platform) -> _Entered:
    kernel = find_kernel(state)
    booted, initramfs = boot_files(state, kernel, platform)
    return _Entered(
        # what is shipped is the kernel as packaged, what is kept and booted the one taken out of it
        compressed_bytes=sum(path.stat().st_size for path in (kernel.image, initramfs)),
        unpacked_bytes=sum(path.stat().st_size for path in (booted, initramfs)),
        on_disk_bytes=sum(path.stat().st_blocks * 512 for path in (booted, initramfs)),
        parts={KERNEL: str(booted), "kernel version": kernel.version, INITRAMFS: str(initramfs)},
    )


def _direct(image: WorkloadImage, state: Path, platform: Platform, _options: DomainOptions) -> Image:
    """The disk of ``image`` and the kernel and initramfs of ``platform``."""
    kernel = _entered(state, platform)
    disk = make_disk(image, state / "disks")
    return Image(
        digest=image.digest,
        form="ext4 disk, kernel and initramfs",
        location=disk.path,
        compressed_bytes=disk.compressed_bytes + kernel.compressed_bytes,
        unpacked_bytes=image.unpacked_bytes + kernel.unpacked_bytes,
        on_disk_bytes=disk.on_disk_bytes + kernel.on_disk_bytes,
        parts={"disk": str(disk.path), **kernel.parts},
        virtual_bytes=disk.size_bytes,
        used_bytes=disk.used_bytes,
    )


def _shared(image: WorkloadImage, state: Path, platform: Platform, _options: DomainOptions) -> Image:
    """The very directory of ``image`` that containers run from, and the kernel and initramfs of ``platform``."""
    kernel = _entered(state, platform)
    return Image(
        digest=image.digest,
        form="directory, kernel and initramfs",
        location=image.tree,
        compressed_bytes=image.compressed_bytes + kernel.compressed_bytes,
        unpacked_bytes=image.unpacked_bytes + kernel.unpacked_bytes,
        on_disk_bytes=image.tree_bytes + kernel.on_disk_bytes,
        parts={TREE: str(image.tree), **kernel.parts},
    )


def _full(image: WorkloadImage, state: Path, _platform: Platform, _options: DomainOptions) -> Image:
    """The server disk of ``image``, which every platform with firmware boots."""
    disk = make_full_disk(image, find_kernel(state), state / "disks")
    return Image(
        digest=image.digest,
        form="server disk with boot loader, kernel and systemd",
        location=disk.path,
        compressed_bytes=disk.compressed_bytes,
        unpacked_bytes=None,
        on_disk_bytes=disk.on_disk_bytes,
        parts={"disk": str(disk.path), "kernel version": disk.kernel_version},
        virtual_bytes=disk.size_bytes,
        used_bytes=disk.used_bytes,
    )


def _users(image: WorkloadImage, state: Path, _platform: Platform, options: DomainOptions) -> Image:
    """A copy of the user's own image, which the payload of ``image`` is brought to when it boots.

    What is in it, and how small it could be made, nobody has looked: those two sizes are missing.
    """
    assert options.image is not None
    payload_files(image.tree)  # it must fit into a seed
    taken = take_image(options.image, state / "disks/taken")
    return Image(
        digest=f"sha256:{taken.sha256}",
        form=f"disk image of the user's, {taken.image.format}",
        location=taken.image.path,
        compressed_bytes=None,
        unpacked_bytes=None,
        on_disk_bytes=taken.image.path.stat().st_blocks * 512,
        parts={
            "image": str(options.image),
            SHA256: taken.sha256,
            "file bytes": str(taken.file_bytes),
            FORMAT: taken.image.format,
            "disk": str(taken.image.path),
            PAYLOAD: str(image.tree),
        },
        virtual_bytes=taken.image.size_bytes,
    )


_FORMS: Final[
    Mapping[Literal["direct", "full", "image"], Callable[[WorkloadImage, Path, Platform, DomainOptions], Image]]
] = {"direct": _direct, "full": _full, "image": _users}


def describe_form(
    state: Path, platform: Platform, options: DomainOptions, built: Image | None = None
) -> dict[str, str]:
    """What is in the guest of ``options``, for the record: two results with different ones cannot be compared.

    Of a user's image it is what was ``built``, whatever has become of the file since.

    Raises:
        DriverUnavailable: there is no guest kernel or no UEFI.
        ImageError: the user's image cannot be read.
    """
    described: dict[str, str] = {"guest": options.guest}
    if options.image is None:
        arguments = platform.kernel_arguments if options.guest == "direct" else FULL_ARGUMENTS
        described |= {"guest kernel": find_kernel(state).version, "kernel arguments": " ".join(arguments)}
    else:
        own = "that of the image"
        described |= {
            "guest kernel": own,
            "kernel arguments": own,
            SHA256: built.parts[SHA256] if built else image_sha256(options.image),
        }
    if options.firmware == "ovmf":
        described["UEFI"] = uefi_files(state)[0].name
    return described


def disk_form(options: DomainOptions) -> str:
    """What the guest's root is made of, in a few words."""
    if options.root == "virtiofs":
        return "none: an overlay of memory on virtiofs"
    form = "ext4, qcow2 overlay on raw" if options.image is None else "qcow2 overlay on a copy of the image"
    return f"{options.disk_bus}, {form}, cache={options.cache}, io={options.io}"


def expected_form(state: Path, options: DomainOptions) -> Image:
    """The image that ``build_form`` would make, with placeholders for the files; makes nothing.

    Raises:
        ImageError: the user's image is none that may be used.
    """
    below = "raw" if options.image is None else inspect_image(options.image).format
    parts = {
        "direct": {KERNEL: str(state / "boot/KERNEL")} | ({TREE: ""} if options.root == "virtiofs" else {}),
        "full": {},
        "image": {PAYLOAD: "TREE", FORMAT: below},
    }[options.guest]
    if options.firmware == "ovmf":
        parts |= {UEFI_CODE: str(state / "boot/UEFI"), UEFI_VARIABLES: ""}
    return Image("", "", state / f"disks/DISK.{below}", None, None, None, parts)
