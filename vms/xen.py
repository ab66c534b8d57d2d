"""Guests of Xen: PV and PVH, which enter a raw Linux kernel, and HVM, a whole emulated board.

- disk: Xen's own block device, served by a QEMU in dom0 (``qdisk``), because the overlay is qcow2 and dom0's kernel
  serves only what needs no translation. The modes of cache and input/output are Xen's to choose.
- console: Xen's own, of one page of shared memory, which speaks from the kernel's first line. HVM has a serial port,
  because its console speaks only after the kernel has found Xen's platform device.
- HVM takes its kernel through QEMU's loader, which wants it as packaged and unpacks it in the guest: slow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from vms.domain import Domain, Platform, boot_element, disk_elements, ends, interface_element
from vms.options import Unsupported

if TYPE_CHECKING:
    import libvirt

_COMMON_ARGUMENTS: Final = ("quiet", "panic=-1", "cryptomgr.notests")


def ask_to_reboot(domain: libvirt.virDomain) -> None:
    """Ask a direct guest to end: Xen's reboot request reaches its init as Ctrl-Alt-Del does (drivers/xen/manage.c)."""
    domain.reboot(0)


def _write(root: ET.Element, domain: Domain) -> None:
    boot_element(root, domain)
    board = domain.platform.os_type == "hvm"
    if board:
        features = ET.SubElement(root, "features")
        for feature in ("acpi", "apic", "pae"):
            ET.SubElement(features, feature)
    ends(root)
    devices = ET.SubElement(root, "devices")
    disk_elements(devices, domain, "xen", {})
    interface_element(devices, domain, "")
    if board:
        serial = ET.SubElement(devices, "serial", type="pty")
        ET.SubElement(serial, "target", port="0")
    else:
        console = ET.SubElement(devices, "console", type="pty")
        ET.SubElement(console, "target", type="xen", port="0")
    ET.SubElement(devices, "memballoon", model="xen")  # which libvirt's Xen driver does not do without


XEN_PV: Final = Platform(
    name="xen-pv",
    title="Xen",
    domain_type="xen",
    os_type="linux",
    machine="xenpv",
    uri_variable="ISOMARK_XEN_URI",
    default_uri="xen:///system",
    kernel="raw",
    kernel_arguments=("console=hvc0", "earlyprintk=xen", *_COMMON_ARGUMENTS),
    modules=("xen_blkfront", "xen_netfront"),
    disk="/dev/xvda",
    terminal="/dev/hvc0",
    autodestroy=False,
    write=_write,
    ask_to_end=ask_to_reboot,
    unsupported=Unsupported(
        (
            "sockets",
            "cores",
            "threads",
            "cpu",
            "huge_pages",
            "balloon",
            "free_page_reporting",
            "disk_bus",
            "cache",
            "io",
            "iothreads",
            "network_model",
            "machine",
            "firmware",
            "virtiofs",
            "root",
            "console",
        ),
        # neither has a BIOS to start a boot loader
        (("guest", "full"), ("guest", "image")),
    ),
)
XEN_PVH: Final = replace(XEN_PV, name="xen-pvh", os_type="xenpvh", machine="xenpvh")
XEN_HVM: Final = replace(
    XEN_PV,
    name="xen-hvm",
    os_type="hvm",
    machine="xenfv",
    kernel="packaged",
    kernel_arguments=(
        "console=ttyS0",
        "earlycon=uart8250,io,0x3f8,115200",
        *_COMMON_ARGUMENTS,
        "tsc=reliable",
        "no_timer_check",
    ),
    terminal="/dev/ttyS0",
    unsupported=Unsupported(
        tuple(name for name in XEN_PV.unsupported.names if name != "firmware"),
        (("guest", "image"), ("firmware", "ovmf")),
    ),
)
