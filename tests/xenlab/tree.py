"""dom0's files: Debian packages, and the few files that make it start without systemd."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from bench.errors import HostError
from bench.journal import Journal
from runtimes.oci.debian import Progress, debian_tree
from xenlab.packages import DOM0

FILES: Final = Path(__file__).parent / "files"
_PLACES: Final = {
    "inittab": "etc/inittab",
    "start-dom0": "usr/local/sbin/start-dom0",
    "libvirtd.conf": "etc/libvirt/libvirtd.conf",
    "pool.xml": "etc/libvirt/storage/default.xml",
}
_DIRECTORIES: Final = ("var/lib/libvirt/images", "var/log/libvirt", "var/log/xen")
_MACHINE_ID: Final = "7e8a0f5e6d0b4d0f9e550c1d2b3a4f50"
_DRIVERS: Final = ("libxl", "storage")
"""libvirt's own parts that are of use here; the others want dbus, udev or users, and libvirtd ends without them."""

_CPU_MODEL: Final = "usr/share/libvirt/cpu_map/x86_486.xml"


def make_tree(work: Path, environment: Mapping[str, str], journal: Journal, progress: Progress) -> Path:
    """Make dom0's tree below ``work`` and return it; ``environment`` is that of the program which unpacks it.

    Raises:
        ImageError: mmdebstrap cannot make it.
        HostError: it cannot be unpacked.
    """
    tree = work / "tree"
    tree.mkdir()
    with debian_tree(DOM0, work, journal, progress) as pieces:
        _unpack(pieces, tree, environment)
    _furnish(tree)
    return tree


def _unpack(pieces: Iterable[bytes], tree: Path, environment: Mapping[str, str]) -> None:
    command = ["tar", "-x", "-C", str(tree)]
    with tempfile.TemporaryFile() as errors:  # not a pipe: when the disk is full tar complains of every file
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=errors) as tar:
            assert tar.stdin is not None
            with suppress(BrokenPipeError):  # tar ended, and said why
                for piece in pieces:
                    tar.stdin.write(piece)
                tar.stdin.close()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip().splitlines()
    if tar.returncode != 0:
        raise HostError(
            f"cannot unpack dom0: {'; '.join(said[:3])}", hint="df -h; ISOMARK_STATE may name a larger disk"
        )


def _furnish(tree: Path) -> None:
    for name, place in _PLACES.items():
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FILES / name, tree / place)
    autostart = tree / "etc/libvirt/storage/autostart"
    autostart.mkdir()
    (autostart / "default.xml").symlink_to("/etc/libvirt/storage/default.xml")
    for directory in _DIRECTORIES:
        (tree / directory).mkdir(parents=True, exist_ok=True)
    (tree / "etc/machine-id").write_text(f"{_MACHINE_ID}\n")
    for driver in tree.glob("usr/lib/*/libvirt/connection-driver/libvirt_driver_*.so"):
        if driver.stem.removeprefix("libvirt_driver_") not in _DRIVERS:
            driver.unlink()
    # Xen masks vme on an emulated CPU, and libvirt knows no model without it: no capabilities then, so no driver
    model = tree / _CPU_MODEL
    model.write_text("".join(line for line in model.read_text().splitlines(True) if "'vme'" not in line))
