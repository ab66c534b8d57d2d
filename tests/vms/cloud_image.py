"""A cloud image as Debian makes them, of Debian's packages: nothing of ours is in it but its boot loader.

cloud-init finds the seed by itself, netplan configures the network, and the kernel prints on the serial port. It is
built once and kept in the state directory.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import uuid
from pathlib import Path
from typing import Final

from bench.clean import remove_directory
from bench.journal import Journal
from bench.units import GIB, MIB
from runtimes.oci.debian import debian_tree
from vms.cache import making
from vms.full.disk import write_frame

PACKAGES: Final = (
    "cloud-guest-utils", "cloud-init", "dbus", "e2fsprogs", "fdisk", "initramfs-tools", "iproute2", "libpam-systemd",
    "linux-image-cloud-amd64", "netplan.io", "nginx", "openssh-server", "procps", "sudo", "systemd-resolved",
    "systemd-sysv", "udev", "zstd",
)  # fmt: skip
"""Those of Debian's cloud images, and of the workloads' only nginx."""
SIZE: Final = 2 * GIB

_FINISH: Final = r"""#!/bin/sh
set -eu
cd "$1"
# the times of files are cut below, which no compiled Python with a time in it would survive
chroot . python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.11 || true
rm -rf usr/share/man/* usr/share/locale/* usr/share/info/* var/cache/apt/*.bin etc/resolv.conf
rm -f etc/hostname etc/machine-id var/lib/dbus/machine-id etc/ssh/ssh_host_*
ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
: >etc/machine-id
echo 'LABEL=isomark / ext4 errors=remount-ro 0 1' >etc/fstab
version=$(ls lib/modules)
mkdir -p boot/grub
cat >boot/grub/grub.cfg <<END
linux /boot/vmlinuz-$version root=LABEL=isomark ro console=tty0 console=ttyS0,115200
initrd /boot/initrd.img-$version
boot
END
"""


def cloud_image(state: Path, journal: Journal) -> Path:
    """Return the image, a compressed qcow2 in ``state``, made unless it is there.

    Raises:
        ImageError, HostError: it cannot be made here.
    """
    recipe = hashlib.sha256(repr((PACKAGES, SIZE, _FINISH)).encode()).hexdigest()[:16]
    path = state / "labs" / "cloud" / f"{recipe}.qcow2"
    if not path.exists():
        with making(path) as temporary:
            if temporary is not None:
                for other in path.parent.glob("[!.]*"):  # of other recipes
                    if other.is_dir():
                        remove_directory({"path": str(other)})
                    else:
                        other.unlink()
                work = path.parent / "work"
                work.mkdir()
                with journal.owning("directory", path=str(work)):
                    try:
                        _make(work, temporary, journal)
                    finally:
                        remove_directory({"path": str(work)})
    return path


def _make(work: Path, path: Path, journal: Journal) -> None:
    tree, disk = work / "tree", work / "disk.raw"
    tree.mkdir()
    with (
        debian_tree(PACKAGES, work, journal, print, finish=_FINISH) as pieces,
        subprocess.Popen(["tar", "-x", "--numeric-owner", "-C", str(tree)], stdin=subprocess.PIPE) as tar,
    ):
        assert tar.stdin is not None
        for piece in pieces:
            tar.stdin.write(piece)
        tar.stdin.close()
        assert tar.wait() == 0
    offset = write_frame(disk, SIZE, uuid.uuid5(uuid.NAMESPACE_OID, path.name))
    blocks = (SIZE - offset - MIB) >> 10
    options = ["-q", "-F", "-t", "ext4", "-L", "isomark", "-E", f"offset={offset}", "-d", str(tree)]
    _run("mke2fs", *options, str(disk), f"{blocks}k")
    _run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-c", str(disk), str(path))


def _run(*command: str) -> None:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, check=True)
