"""What the outer machine boots: Xen, dom0's kernel, and an initramfs with its first program and modules."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bench.errors import HostError
from vms import cpio
from vms.decompress import decompress
from vms.modules import load_order
from vms.vmlinux import extract_vmlinux
from xenlab.tree import FILES

MODULES: Final = (
    *("virtio_pci", "virtio_blk", "virtio_net", "ext4", "crc32c_generic"),
    *("xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_privcmd", "xenfs", "xen_blkback", "xen_netback"),
    *("bridge", "tun", "loop"),
)
_HYPERVISOR: Final = "boot/xen-4.17-amd64.gz"


def write_boot_files(tree: Path, kernel: Path, directory: Path) -> None:
    """Write xen, vmlinux and initramfs into ``directory``; all raw, since emulated CPUs are slow at unpacking.

    ``tree`` is dom0's, ``kernel`` has boot/ and lib/modules/ of a kernel package.

    Raises:
        HostError: something is missing or damaged.
    """
    images = list(kernel.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise HostError("the kernel package does not hold one kernel", hint="apt-get update")
    modules = kernel / "lib/modules" / images[0].name.removeprefix("vmlinuz-")
    (directory / "xen").write_bytes(decompress((tree / _HYPERVISOR).read_bytes()))
    (directory / "vmlinux").write_bytes(extract_vmlinux(images[0].read_bytes()))
    (directory / "initramfs").write_bytes(_initramfs((tree / "bin/busybox").read_bytes(), modules))


def _initramfs(busybox: bytes, modules: Path) -> bytes:
    loaded = load_order(modules, MODULES)
    return cpio.archive(
        [
            *(cpio.directory(name) for name in ("bin", "dev", "modules", "root")),
            cpio.character_device("dev/console", 5, 1),
            cpio.file("bin/busybox", busybox, 0o755),
            cpio.file("init", (FILES / "first").read_bytes(), 0o755),
            *(cpio.file(f"modules/{at:02}-{name}.ko", data) for at, (name, data) in enumerate(loaded.items())),
        ]
    )
