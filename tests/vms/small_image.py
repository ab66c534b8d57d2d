"""The smallest image that a guest can run: a static busybox as its shell."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from bench.model import WorkloadImage
from bench.state import state_directory
from vms.initramfs import find_busybox

PATH = {"PATH": "/bin"}
_RUN = os.urandom(8)
"""Those of one run of the tests are alike; another's at the same moment are not, and so neither removes the other's."""


def small_image(root: Path, scripts: Mapping[str, str] | None = None) -> WorkloadImage:
    """Make its tree at ``root``, which must not exist yet; with ``scripts`` in it, by their paths."""
    for name in ("bin", "dev", "isomark", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(find_busybox(), root / "bin/busybox")
    for name in ("sh", "cat", "sleep", "yes", "head", "seq"):
        (root / "bin" / name).symlink_to("busybox")
    size = (root / "bin/busybox").stat().st_size
    for path, script in (scripts or {}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(script)
        (root / path).chmod(0o755)
    content = _RUN + (root / "bin/busybox").read_bytes() + repr(scripts or "").encode()
    digest = hashlib.sha256(content).hexdigest()
    atexit.register(_remove_disks, digest)
    return WorkloadImage("busybox", f"sha256:{digest}", root, root, size, size, size)


def _remove_disks(digest: str) -> None:
    """Remove what was made of it where disks are kept for good."""
    for path in (state_directory() / "disks").glob(f"{digest[:24]}-*"):
        path.unlink(missing_ok=True)
