"""An empty qcow2 overlay on a disk, written directly: 1 ms, where starting qemu-img takes 20."""

from __future__ import annotations

import os
import struct
from pathlib import Path, PurePath
from typing import Final, Literal

Format = Literal["raw", "qcow2"]
CLUSTER_BITS: Final = 16
_CLUSTER: Final = 1 << CLUSTER_BITS
_HEADER_BYTES: Final = 104
_BACKING_FORMAT: Final = 0xE2792ACA


def write_overlay(path: Path, backing: PurePath, size_bytes: int, backing_format: Format = "raw") -> None:
    """Create ``path`` as an overlay of disk ``backing``, ``size_bytes`` long; what ``backing`` lacks of it is zero.

    Version 3, four clusters: header, refcount table, one refcount block, L1 table
    (QEMU, docs/interop/qcow2.txt).

    Raises:
        OSError: it exists already, or cannot be written.
    """
    backing_name = os.fsencode(backing)
    extension = struct.pack(">II8s", _BACKING_FORMAT, len(backing_format), backing_format.encode()) + struct.pack(
        ">II", 0, 0
    )
    covered = _CLUSTER * (_CLUSTER // 8)  # what one L1 entry, that is one L2 table, maps
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb",
        3,
        _HEADER_BYTES + len(extension),  # the backing file's name, offset and length
        len(backing_name),
        CLUSTER_BITS,
        size_bytes,
        0,  # no encryption
        -(-size_bytes // covered),  # L1 entries, offset
        3 * _CLUSTER,
        1 * _CLUSTER,  # refcount table, clusters
        1,
        0,  # snapshots
        0,
        0,  # incompatible, compatible, autoclear features
        0,
        0,
        4,  # refcounts of 2^4 bits
        _HEADER_BYTES,
    )
    clusters = {
        0: header + extension + backing_name,
        1: struct.pack(">Q", 2 * _CLUSTER),
        2: struct.pack(">4H", 1, 1, 1, 1),
    }
    with path.open("xb") as file:
        for number, data in clusters.items():
            file.seek(number * _CLUSTER)
            file.write(data)
        file.truncate(4 * _CLUSTER)
