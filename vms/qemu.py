"""Guests of QEMU, with its emulated CPU and with KVM.

Every device costs boot time, so there are only those that a guest needs:

- machine ``q35`` with its devices on the root bus itself: enabling their interrupts takes an emulated CPU a
  fifth of a second less for each than on ``pc``, whose ACPI tables route them through link devices,
  and a root port for each, as libvirt would add, is one more device to find.
- disk: virtio, a qcow2 overlay of this trial on the shared raw disk; its cache: see ``vms/options.py``.
- network: virtio on a tap that libvirt makes and that is then moved to the lab's bridge.
- console: the first serial port on a Unix socket that the driver listens on, so nothing is lost from
  the first byte, and its end is the hypervisor's end. A virtio console would only start to
  speak when its module is loaded.
- no graphics, sound, USB, balloon (its figures would blur the memory reading) or random number
  device (the CPU has RDRAND).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from vms.domain import QEMU_NAMESPACE, Domain, Platform, boot_element, disk_elements, ends, interface_element, text

if TYPE_CHECKING:
    import libvirt

MACHINE: Final = "q35"
EMULATOR: Final = "/usr/bin/qemu-system-x86_64"

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

_CTRL_ALT_DEL: Final = (29, 56, 111)
"""KEY_LEFTCTRL, KEY_LEFTALT, KEY_DELETE (Linux, input-event-codes.h)."""
_KEY_MILLISECONDS: Final = 50


def press_ctrl_alt_del(domain: libvirt.virDomain) -> None:
    """Ask a direct guest to end: its init then sends SIGTERM to the payload and powers off after it.

    The ACPI power button would need a daemon and two kernel modules in the guest, which every
    boot would pay for.
    """
    import libvirt

    domain.sendKey(libvirt.VIR_KEYCODE_SET_LINUX, _KEY_MILLISECONDS, list(_CTRL_ALT_DEL), len(_CTRL_ALT_DEL), 0)


def _write(root: ET.Element, domain: Domain) -> None:
    boot_element(root, domain)
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    _cpu(root, domain)
    ends(root)
    _devices(root, domain)
    # QEMU runs as libvirt's own user; the files are made so that this user may open them, which spares
    # libvirt to relabel the shared kernel and disk before each start and after each end
    if domain.keep_owners:
        ET.SubElement(root, "seclabel", type="none", model="dac")
    _passthrough(root, domain)


def _cpu(root: ET.Element, domain: Domain) -> None:
    hardware = domain.platform.domain_type == "kvm"
    mode = domain.options.cpu
    if mode == "default":
        # leaving out features that cost the emulator work (la57, smap) showed no difference at boot
        mode = "host-passthrough" if hardware else "maximum"
    attributes = {"mode": mode, "check": "none"}
    if mode == "host-passthrough":
        attributes["migratable"] = "off"
    cpu = ET.SubElement(root, "cpu", attributes)
    if (topology := domain.options.topology(domain.cpus)) is not None:
        ET.SubElement(
            cpu,
            "topology",
            sockets=str(topology.sockets),
            dies="1",
            cores=str(topology.cores),
            threads=str(topology.threads),
        )


def _devices(root: ET.Element, domain: Domain) -> None:
    options = domain.options
    devices = ET.SubElement(root, "devices")
    text(devices, "emulator", EMULATOR)
    driver: dict[str, str] = {"cache": options.cache, "io": options.io}
    if options.iothreads and options.disk_bus == "virtio":
        driver["iothread"] = "1"
    disk = disk_elements(devices, domain, options.disk_bus, driver)
    if options.disk_bus == "virtio":
        _on_root_bus(disk, 2)
    elif options.disk_bus == "scsi":
        ET.SubElement(devices, "controller", type="scsi", model="virtio-scsi")
    interface = interface_element(devices, domain, options.network_model)
    if interface is not None:
        ET.SubElement(interface, "rom", enabled="no")
        _on_root_bus(interface, 3)
    if options.virtiofs is not None:
        shared = ET.SubElement(devices, "filesystem", type="mount", accessmode="passthrough")
        ET.SubElement(shared, "driver", type="virtiofs")
        ET.SubElement(shared, "source", dir=str(options.virtiofs))
        ET.SubElement(shared, "target", dir="host")
    serial = ET.SubElement(devices, "serial", type="pty" if domain.console is None else "unix")
    if domain.console is not None:
        ET.SubElement(serial, "source", mode="connect", path=str(domain.console))
    ET.SubElement(serial, "target", type="isa-serial", port="0")
    ET.SubElement(devices, "controller", type="usb", model="none")
    reporting = {"freePageReporting": "on"} if options.free_page_reporting else {}
    ET.SubElement(devices, "memballoon", {"model": options.balloon, **reporting})


def _passthrough(root: ET.Element, domain: Domain) -> None:
    """What only libvirt's QEMU driver understands."""
    commandline = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}commandline")
    ET.SubElement(commandline, f"{{{QEMU_NAMESPACE}}}env", name="ISOMARK_OWNER", value=domain.owner)
    # libvirt would ask QEMU for each of some 400 CPU features one by one: 0.3 s of every start
    capabilities = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}capabilities")
    ET.SubElement(capabilities, f"{{{QEMU_NAMESPACE}}}del", capability="cpu-unavailable-features")


def _on_root_bus(device: ET.Element, slot: int) -> None:
    ET.SubElement(device, "address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{slot:02x}", function="0x0")


QEMU: Final = Platform(
    name="qemu",
    title="QEMU",
    domain_type="qemu",
    os_type="hvm",
    machine=MACHINE,
    uri_variable="ISOMARK_LIBVIRT_URI",
    default_uri="qemu:///system",
    kernel="raw if PVH",
    kernel_arguments=KERNEL_ARGUMENTS,
    # everything else that a direct guest needs is built into Debian's cloud kernel; each module costs boot time
    modules=("virtio_pci", "virtio_blk", "virtio_net"),
    disk="/dev/vda",
    terminal="/dev/ttyS0",
    autodestroy=True,
    write=_write,
    ask_to_end=press_ctrl_alt_del,
)
KVM: Final = replace(QEMU, name="kvm", domain_type="kvm")
