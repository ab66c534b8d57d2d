"""The raw kernel inside a bzImage, which a hypervisor can enter directly.

QEMU starts a raw ELF kernel through its PVH entry (kernel, Documentation/x86/boot.rst; Xen,
docs/misc/pvh.pandoc): no firmware hand-over, no real mode, and above all nobody decompresses 50 MB
on the guest's CPU at every boot, which an emulated CPU takes a third of a second for. Xen's PV and
PVH guests need this form anyway.
"""

from __future__ import annotations

import struct
from typing import Final

from bench.errors import HostError
from vms.decompress import decompress
from vms.elf import MAGIC

_PVH_NOTE: Final = 18
"""XEN_ELFNOTE_PHYS32_ENTRY (Xen, xen/include/public/elfnote.h)."""


def extract_vmlinux(image: bytes) -> bytes:
    """Return the ELF kernel in ``image``, a bzImage (kernel, Documentation/x86/boot.rst).

    Raises:
        HostError: ``image`` is no bzImage, or cannot be unpacked.
    """
    if image[0x202:0x206] != b"HdrS":
        raise HostError("not a Linux kernel image", hint="script/bootstrap unpacks the guest kernel anew")
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (sectors + 1) * 512 + offset
    payload = image[begin : begin + length]
    kernel = decompress(payload)
    (size,) = struct.unpack("<I", payload[-4:])  # what the build appends: the unpacked size, modulo 2^32
    if not kernel.startswith(MAGIC) or len(kernel) & 0xFFFFFFFF != size:
        raise HostError("the kernel image is damaged", hint="script/bootstrap unpacks the guest kernel anew")
    return kernel


def has_pvh_entry(kernel: bytes) -> bool:
    """Whether ELF ``kernel`` has the note that QEMU looks for (CONFIG_PVH); without it QEMU refuses the file."""
    return any(struct.pack("<III4s", 4, size, _PVH_NOTE, b"Xen\0") in kernel for size in (4, 8))
