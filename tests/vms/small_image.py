"""The smallest image that a guest can run: a static busybox as its shell."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from bench.model import WorkloadImage
from vms.initramfs import find_busybox

PATH = {"PATH": "/bin"}


def small_image(root: Path) -> WorkloadImage:
    """Make its tree at ``root``, which must not exist yet."""
    for name in ("bin", "dev", "isomark", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(find_busybox(), root / "bin/busybox")
    for name in ("sh", "cat", "sleep", "yes", "head", "seq"):
        (root / "bin" / name).symlink_to("busybox")
    size = (root / "bin/busybox").stat().st_size
    digest = hashlib.sha256(b"small image 1" + (root / "bin/busybox").read_bytes()).hexdigest()
    return WorkloadImage("busybox", f"sha256:{digest}", root, root, size, size, size)
