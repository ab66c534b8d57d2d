"""A virtual server as libvirt domain XML: pure functions, the same description giving the same bytes.

What all hypervisors have in common is here; what QEMU's (``vms/qemu.py``) and Xen's (``vms/xen.py``) guests are made of
is written by the function that a ``Platform`` names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, Literal
from xml.etree import ElementTree as ET

from vms.options import DEFAULTS, NOTHING, DomainOptions, Unsupported

if TYPE_CHECKING:
    import libvirt

NAMESPACE: Final = "urn:isomark:domain:1"
"""Of the metadata that marks a domain as ours; nothing else is ever destroyed."""
HUGE_PAGE_KIB: Final = 2048
QEMU_NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"

_XML_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Platform:
    """One hypervisor as data: what tells its driver from the others.

    ``kernel`` is the form in which it can enter one: ``raw`` (ELF), ``packaged`` (bzImage), or raw where the kernel
    has a PVH entry. ``modules`` are the drivers a direct guest loads for its ``disk`` and network; ``terminal`` is the
    device of its console. ``shared_root``: its root is a directory of the host and no disk. ``autodestroy``: whether
    libvirt can tie a domain to our connection. ``fit`` makes of it the platform that certain options need.
    """

    name: str
    title: str
    domain_type: Literal["qemu", "kvm", "xen"]
    os_type: Literal["hvm", "linux", "xenpvh"]
    machine: str
    uri_variable: str
    default_uri: str
    kernel: Literal["raw", "packaged", "raw if PVH"]
    kernel_arguments: tuple[str, ...]
    modules: tuple[str, ...]
    disk: str
    terminal: str
    autodestroy: bool
    write: Callable[[ET.Element, Domain], None]
    ask_to_end: Callable[[libvirt.virDomain], None]
    unsupported: Unsupported = NOTHING
    shared_root: bool = False
    fit: Callable[[Platform, DomainOptions], Platform] = lambda platform, _: platform

    @property
    def is_qemu(self) -> bool:
        """Whether each of its domains is a QEMU process with a console that it connects to a socket."""
        return self.domain_type != "xen"


@dataclass(frozen=True)
class Nic:
    """The guest's side has ``mac``; ``interface`` is the tap on the host where that is ours to name."""

    interface: str
    mac: str


@dataclass(frozen=True)
class Boot:
    """The kernel that a direct guest enters, by paths on the hypervisor's host."""

    kernel: PurePosixPath
    initrd: PurePosixPath


@dataclass(frozen=True)
class Firmware:
    """UEFI, by paths on the hypervisor's host: its ``code``, and the ``variables`` that the guest may write to."""

    code: PurePosixPath
    variables: PurePosixPath


@dataclass(frozen=True)
class Domain:
    """What a guest is made of; all paths are on the hypervisor's host.

    ``console`` is a Unix socket that its console connects to; without one it is a pseudo terminal, which
    libvirt can open. Without ``boot`` it is a full guest, which starts from its disk by ``firmware``, or else by a
    BIOS. ``backing`` is the disk below the qcow2 overlay ``disk``, in ``backing_format``, lest anybody guess it;
    without ``disk`` it is the directory that is its root, shared by virtiofs. ``seed`` is a second, read-only raw disk
    with a full guest's first settings.
    ``keep_owners`` tells libvirt to leave the files' owners alone, where it would change them (its DAC security model).
    """

    platform: Platform
    name: str
    uuid: str
    owner: str
    cpus: int
    memory_bytes: int
    boot: Boot | None
    disk: PurePosixPath | None
    backing: PurePosixPath
    console: PurePosixPath | None
    nic: Nic | None
    seed: PurePosixPath | None = None
    firmware: Firmware | None = None
    backing_format: Literal["raw", "qcow2"] = "raw"
    keep_owners: bool = True
    options: DomainOptions = DEFAULTS


def domain_xml(domain: Domain) -> str:
    """Return libvirt's XML for ``domain`` (libvirt, formatdomain).

    Raises:
        ValueError: a name holds a character that XML cannot carry.
        OptionsError: the options do not fit the number of CPUs.
    """
    root = begin_xml(domain.platform.domain_type, domain.name, domain.uuid, domain.owner, domain.memory_bytes)
    _memory_backing(root, domain.options)
    text(root, "vcpu", str(domain.cpus), placement="static")
    _tuning(root, domain)
    domain.platform.write(root, domain)
    return end_xml(root)


def begin_xml(domain_type: str, name: str, uuid: str, owner: str, memory_bytes: int) -> ET.Element:
    """Return the root of a domain that carries our mark, with what every kind of domain begins with."""
    ET.register_namespace("isomark", NAMESPACE)
    ET.register_namespace("qemu", QEMU_NAMESPACE)
    root = ET.Element("domain", type=domain_type)
    text(root, "name", name)
    text(root, "uuid", uuid)
    text(root, "title", f"isomark {name}")
    metadata = ET.SubElement(root, "metadata")
    ET.SubElement(metadata, f"{{{NAMESPACE}}}instance", owner=owner, trial=name)
    text(root, "memory", str(memory_bytes), unit="b")
    return root


def end_xml(root: ET.Element) -> str:
    """Return the finished domain as text.

    Raises:
        ValueError: it holds a character that XML cannot carry.
    """
    ET.indent(root)
    written = ET.tostring(root, encoding="unicode")
    if _XML_FORBIDDEN.search(written):
        raise ValueError(f"{root.findtext('name')!r} or a path holds a character that XML cannot carry")
    return written + "\n"


def boot_element(root: ET.Element, domain: Domain) -> ET.Element:
    """Add what the guest enters: a kernel, or its disk."""
    platform = domain.platform
    boot = ET.SubElement(root, "os")
    text(boot, "type", platform.os_type, arch="x86_64", machine=domain.options.machine or platform.machine)
    if domain.firmware is not None:  # not firmware='efi', with which libvirt would choose: vms/full/firmware.py
        text(boot, "loader", str(domain.firmware.code), readonly="yes", secure="no", type="pflash")
        text(boot, "nvram", str(domain.firmware.variables))
    if domain.boot is None:
        ET.SubElement(boot, "boot", dev="hd")
        return boot
    text(boot, "kernel", str(domain.boot.kernel))
    text(boot, "initrd", str(domain.boot.initrd))
    text(boot, "cmdline", " ".join(platform.kernel_arguments))
    return boot


def ends(root: ET.Element) -> None:
    """Whatever ends the guest ends the domain: a trial is one life."""
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        text(root, event, "destroy")


def disk_elements(devices: ET.Element, domain: Domain, bus: str, driver: dict[str, str]) -> ET.Element:
    """Add the trial's overlay on the shared disk, and the seed where there is one; return the first."""
    prefix, device_bus = {"virtio": ("vd", "virtio"), "xen": ("xvd", "xen")}.get(bus, ("sd", bus))
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", {"name": "qemu", "type": "qcow2", **driver})
    ET.SubElement(disk, "source", file=str(domain.disk))
    backing = ET.SubElement(disk, "backingStore", type="file")
    ET.SubElement(backing, "format", type=domain.backing_format)
    ET.SubElement(backing, "source", file=str(domain.backing))
    ET.SubElement(backing, "backingStore")
    ET.SubElement(disk, "target", dev=f"{prefix}a", bus=device_bus)
    if domain.seed is not None:
        seed = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(seed, "driver", name="qemu", type="raw")
        ET.SubElement(seed, "source", file=str(domain.seed))
        ET.SubElement(seed, "target", dev=f"{prefix}b", bus=device_bus)
        if device_bus != "xen":  # whose emulated IDE, which a BIOS reads, has no such disks
            ET.SubElement(seed, "readonly")
    return disk


def interface_element(devices: ET.Element, domain: Domain, model: str) -> ET.Element | None:
    """Add the network card where the options and the lab give one; ``None`` without."""
    kind, _, name = domain.options.network.partition(":")
    if kind == "none" or domain.nic is None:
        return None
    types = {"lab": "ethernet"}
    interface = ET.SubElement(devices, "interface", type=types.get(kind, kind))
    ET.SubElement(interface, "mac", address=domain.nic.mac)
    if kind == "lab":
        ET.SubElement(interface, "target", dev=domain.nic.interface, managed="yes")
    elif kind != "user":
        ET.SubElement(interface, "source", {kind: name})
    if model:
        ET.SubElement(interface, "model", type=model)
    return interface


def text(parent: ET.Element, tag: str, content: str, **attributes: str) -> None:
    """Add element ``tag`` with nothing but ``content``."""
    ET.SubElement(parent, tag, attributes).text = content


def _memory_backing(root: ET.Element, options: DomainOptions) -> None:
    if not options.huge_pages and not options.shares_memory:
        return
    backing = ET.SubElement(root, "memoryBacking")
    if options.huge_pages:
        pages = ET.SubElement(backing, "hugepages")
        ET.SubElement(pages, "page", size=str(HUGE_PAGE_KIB), unit="KiB")
    ET.SubElement(backing, "source", type="memfd")  # with huge pages: they need no hugetlbfs then
    if options.shares_memory:  # its daemon maps the guest's memory
        ET.SubElement(backing, "access", mode="shared")


def _tuning(root: ET.Element, domain: Domain) -> None:
    if domain.options.iothreads:
        text(root, "iothreads", str(domain.options.iothreads))
    if pinned := domain.options.pinned(domain.cpus):
        tuning = ET.SubElement(root, "cputune")
        for number, cpus in enumerate(pinned):
            ET.SubElement(tuning, "vcpupin", vcpu=str(number), cpuset=cpus)
