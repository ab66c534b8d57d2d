"""A disk image that somebody else made, by its path: looked at before QEMU opens it, and never trusted.

A qcow2 header can name any file of the host, as backing file or as data file; QEMU would open it and the guest could
read it. So the format is decided here and told to QEMU, and what refers to other files is refused.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import ImageError
from bench.units import GIB, MIB
from vms.qcow2 import Format

MAX_BYTES: Final = 2048 * GIB
"""No cloud image is larger; a header may claim anything."""
MAX_CHAIN: Final = 4

_MAGIC: Final = b"QFI\xfb"
_OTHERS: Final = {b"KDMV": "VMDK", b"vhdxfile": "VHDX", b"conectix": "VHD", b"<<< ": "VDI", b"QED\0": "QED"}
_HEAD_BYTES: Final = 4096
_VERSION_2_BYTES: Final = 72
_KNOWN_FEATURES: Final = {0: "dirty", 1: "corrupt", 2: "external data", 3: "compression type", 4: "subclusters"}
_ALLOWED_FEATURES: Final = 1 << 3 | 1 << 4
_MAX_TABLE_BYTES: Final = 32 * MIB
"""As in QEMU (block/qcow2.h, QCOW_MAX_L1_SIZE)."""
_REMEDY: Final = "qemu-img convert -O qcow2 OLD NEW makes an image of its own"


@dataclass(frozen=True)
class UserImage:
    """``path`` is absolute; ``size_bytes`` is what the guest sees. ``backing`` is the image below it, if any."""

    path: Path
    format: Format
    size_bytes: int
    backing: UserImage | None = None


@dataclass(frozen=True)
class Header:
    """What a qcow2 file says of itself. ``backing`` is a name as it stands there, empty for none."""

    size_bytes: int
    backing: bytes


def inspect_image(path: Path, *, allow_backing: bool = False, depth: int = 0) -> UserImage:
    """Look at the disk image ``path``, without opening any other file unless ``allow_backing``.

    Raises:
        ImageError: it is none, is malformed, claims too much or refers to files that it may not refer to.
    """
    path = path.absolute()
    head, length = _read(path)
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise ImageError(f"{path} is a {name} image", hint=_REMEDY)
    if not head.startswith(_MAGIC):
        return UserImage(path, "raw", _raw_size(path, head, length))
    try:
        header = parse_header(head, length)
    except ValueError as error:
        raise ImageError(f"{path}: {error}", hint=_REMEDY) from error
    backing = _backing(path, header.backing, allow_backing, depth) if header.backing else None
    return UserImage(path, "qcow2", header.size_bytes, backing)


def parse_header(head: bytes, length: int) -> Header:
    """Return what is needed of the header at the start of a qcow2 file of ``length`` bytes (docs/interop/qcow2.txt).

    Raises:
        ValueError: the header is cut off, contradicts itself or needs what is not allowed.
    """
    if len(head) < _VERSION_2_BYTES:
        raise ValueError("the qcow2 header is cut off")
    _, version, name_at, name_bytes, cluster_bits, size, encryption, entries, table_at = struct.unpack_from(
        ">4sIQIIQIIQ", head
    )
    if version not in (2, 3):
        raise ValueError(f"qcow2 has no version {version}")
    if encryption:
        raise ValueError("the image is encrypted")
    if not 9 <= cluster_bits <= 21:
        raise ValueError(f"clusters of 2^{cluster_bits} bytes do not exist")
    if not 0 < size <= MAX_BYTES:
        raise ValueError(f"it claims to be {size} bytes large")
    covered = 1 << (2 * cluster_bits - 3)
    if entries * 8 > _MAX_TABLE_BYTES or table_at + entries * 8 > length or entries * covered < size:
        raise ValueError("its first table does not fit")
    if version == 3:
        _check_features(head)
    if name_at and (name_bytes > 1023 or name_at + name_bytes > min(len(head), 1 << cluster_bits)):
        raise ValueError("the name of its backing file lies outside its header")
    return Header(size, head[name_at : name_at + name_bytes] if name_at else b"")


def _check_features(head: bytes) -> None:
    if len(head) < _VERSION_2_BYTES + 8:
        raise ValueError("the qcow2 header is cut off")
    (features,) = struct.unpack_from(">Q", head, _VERSION_2_BYTES)
    refused = features & ~_ALLOWED_FEATURES
    if refused:
        bits = [_KNOWN_FEATURES.get(bit, f"feature {bit}") for bit in range(64) if refused >> bit & 1]
        raise ValueError(f"it is marked {', '.join(bits)}")


def _read(path: Path) -> tuple[bytes, int]:
    """The start of ``path`` and its length; only of a regular file, and without waiting for anybody."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ImageError(f"cannot open {path}: {error.strerror}", hint="name a qcow2 or raw disk image") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path} is no regular file", hint="name a qcow2 or raw disk image")
        return os.pread(fd, _HEAD_BYTES, 0), status.st_size
    finally:
        os.close(fd)


def _raw_size(path: Path, head: bytes, length: int) -> int:
    if head[510:512] != b"\x55\xaa":
        raise ImageError(f"{path} is no disk that could boot", hint="name a qcow2 or raw disk image")
    if length > MAX_BYTES or length % 512:
        raise ImageError(f"{path} is {length} bytes large, which no raw disk is", hint="it may be cut off")
    return length


def _backing(path: Path, name: bytes, allowed: bool, depth: int) -> UserImage:
    shown = name[:200].decode("utf-8", "replace")
    if not allowed:
        raise ImageError(f"{path} refers to another file, {shown!r}", hint=_REMEDY)
    if b":" in name or b"\0" in name:
        raise ImageError(f"{path} refers to {shown!r}, which is no file", hint=_REMEDY)
    if depth >= MAX_CHAIN:
        raise ImageError(f"{path} is number {depth + 1} of a chain of images", hint=_REMEDY)
    return inspect_image(path.parent / os.fsdecode(name), allow_backing=True, depth=depth + 1)
