"""A direct guest as libvirt domain XML: one pure function, the same description giving the same bytes.

Every device costs boot time, so there are only those that a guest needs:

- machine ``q35`` with its devices on the root bus itself: enabling their interrupts takes an emulated CPU a
  fifth of a second less for each than on ``pc``, whose ACPI tables route them through link devices,
  and a root port for each, as libvirt would add, is one more device to find.
- disk: virtio, a qcow2 overlay of this trial on the shared raw disk, cache ``writeback``. The
  container's files go through the host's page cache; so does this disk, and like a container's
  they reach the device when the payload asks for it (fsync). ``none`` would make every guest read
  its programs from the device at each boot while the container finds them in memory.
- network: virtio on a tap that libvirt makes and that is then moved to the lab's bridge.
- console: the first serial port on a Unix socket that the driver listens on, so nothing is lost from
  the first byte, and its end is the hypervisor's end. A virtio console would only start to
  speak when its module is loaded.
- no graphics, sound, USB, balloon (its figures would blur the memory reading) or random number
  device (the CPU has RDRAND).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from xml.etree import ElementTree as ET

NAMESPACE: Final = "urn:isomark:domain:1"
"""Of the metadata that marks a domain as ours; nothing else is ever destroyed."""
QEMU_NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"

KERNEL_ARGUMENTS: Final = (
    "console=ttyS0",
    # the first kernel lines before the console driver is up; `quiet` after it, so that these few are printed
    # (not earlyprintk, at which boot code prints without time stamps)
    "earlycon=uart8250,io,0x3f8,115200",
    "quiet",
    "panic=-1",  # a panic reboots at once, and a reboot ends the domain
    # what the kernel would measure or try out on a virtual board, at length under emulation
    "tsc=reliable",
    "no_timer_check",
    "cryptomgr.notests",
)

_XML_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Nic:
    """A tap called ``interface`` on the host; the guest's side has ``mac``."""

    interface: str
    mac: str


@dataclass(frozen=True)
class Domain:
    """What a direct guest is made of. ``accelerator`` is libvirt's domain type: ``qemu`` emulates the CPU."""

    accelerator: Literal["qemu", "kvm"]
    name: str
    uuid: str
    owner: str
    cpus: int
    memory_bytes: int
    kernel: Path
    initrd: Path
    disk: Path
    backing: Path
    console: Path
    nic: Nic | None
    emulator: str = "/usr/bin/qemu-system-x86_64"
    machine: str = "q35"


def domain_xml(domain: Domain) -> str:
    """Return libvirt's XML for ``domain`` (libvirt, formatdomain).

    Raises:
        ValueError: a name holds a character that XML cannot carry.
    """
    ET.register_namespace("isomark", NAMESPACE)
    ET.register_namespace("qemu", QEMU_NAMESPACE)
    root = ET.Element("domain", type=domain.accelerator)
    _text(root, "name", domain.name)
    _text(root, "uuid", domain.uuid)
    _text(root, "title", f"isomark {domain.name}")
    metadata = ET.SubElement(root, "metadata")
    ET.SubElement(metadata, f"{{{NAMESPACE}}}instance", owner=domain.owner, trial=domain.name)
    _text(root, "memory", str(domain.memory_bytes), unit="b")
    _text(root, "vcpu", str(domain.cpus), placement="static")
    _boot(root, domain)
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    _cpu(root, domain)
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(root, event, "destroy")
    _devices(root, domain)
    # QEMU runs as libvirt's own user; the files are made so that this user may open them, which spares
    # libvirt to relabel the shared kernel and disk before each start and after each end
    ET.SubElement(root, "seclabel", type="none", model="dac")
    _qemu(root, domain)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    if _XML_FORBIDDEN.search(text):
        raise ValueError(f"{domain.name!r} holds a character that XML cannot carry")
    return text + "\n"


def _boot(root: ET.Element, domain: Domain) -> None:
    boot = ET.SubElement(root, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine=domain.machine)
    _text(boot, "kernel", str(domain.kernel))
    _text(boot, "initrd", str(domain.initrd))
    _text(boot, "cmdline", " ".join(KERNEL_ARGUMENTS))


def _cpu(root: ET.Element, domain: Domain) -> None:
    if domain.accelerator == "kvm":
        ET.SubElement(root, "cpu", mode="host-passthrough", check="none", migratable="off")
        return
    # leaving out features that cost the emulator work (la57, smap) showed no difference at boot
    ET.SubElement(root, "cpu", mode="maximum", check="none")


def _devices(root: ET.Element, domain: Domain) -> None:
    devices = ET.SubElement(root, "devices")
    _text(devices, "emulator", domain.emulator)
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="qcow2", cache="writeback", io="threads")
    ET.SubElement(disk, "source", file=str(domain.disk))
    backing = ET.SubElement(disk, "backingStore", type="file")
    ET.SubElement(backing, "format", type="raw")
    ET.SubElement(backing, "source", file=str(domain.backing))
    ET.SubElement(backing, "backingStore")
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    _on_root_bus(disk, 2)
    if domain.nic is not None:
        interface = ET.SubElement(devices, "interface", type="ethernet")
        ET.SubElement(interface, "mac", address=domain.nic.mac)
        ET.SubElement(interface, "target", dev=domain.nic.interface, managed="yes")
        ET.SubElement(interface, "model", type="virtio")
        ET.SubElement(interface, "rom", enabled="no")
        _on_root_bus(interface, 3)
    serial = ET.SubElement(devices, "serial", type="unix")
    ET.SubElement(serial, "source", mode="connect", path=str(domain.console))
    ET.SubElement(serial, "target", type="isa-serial", port="0")
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")


def _qemu(root: ET.Element, domain: Domain) -> None:
    """What only libvirt's QEMU driver understands."""
    commandline = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}commandline")
    ET.SubElement(commandline, f"{{{QEMU_NAMESPACE}}}env", name="ISOMARK_OWNER", value=domain.owner)
    # libvirt would ask QEMU for each of some 400 CPU features one by one: 0.3 s of every start
    capabilities = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}capabilities")
    ET.SubElement(capabilities, f"{{{QEMU_NAMESPACE}}}del", capability="cpu-unavailable-features")


def _on_root_bus(device: ET.Element, slot: int) -> None:
    ET.SubElement(device, "address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{slot:02x}", function="0x0")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
