"""Guests of QEMU, with its emulated CPU and with KVM.

Every device costs boot time, so there are only those that a guest needs:

- machine ``q35`` with its devices on the root bus itself: enabling their interrupts takes an emulated CPU a
  fifth of a second less for each than on ``pc``, whose ACPI tables route them through link devices,
  and a root port for each, as libvirt would add, is one more device to find.
- no firmware but qboot, which does nothing but hand over to the kernel (a PC needs that much; QEMU brings it).
  SeaBIOS looks for boot devices and offers services that nobody calls: an eighth of the time to ready.
- disk: virtio, a qcow2 overlay of this trial on the shared raw disk; its cache: see ``vms/options.py``.
- network: virtio on a tap that libvirt makes and that is then moved to the lab's bridge.
- console: the first serial port on a Unix socket that the driver listens on, so nothing is lost from
  the first byte, and its end is the hypervisor's end. A virtio console would only start to
  speak when its module is loaded.
- no graphics, sound, USB, balloon (its figures would blur the memory reading) or random number
  device (the CPU has RDRAND).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

from vms.domain import QEMU_NAMESPACE, Domain, Platform, boot_element, disk_elements, ends, interface_element, text
from vms.options import DomainOptions, Unsupported

if TYPE_CHECKING:
    import libvirt

MACHINE: Final = "q35"
FIRMWARE: Final = "qboot.rom"
"""What enters a direct guest's kernel: of QEMU's own data directory, wherever its host has that."""
ROOT_TAG: Final = "isomark"
"""What virtiofs calls the directory that is a guest's root."""
EMULATOR: Final = "/usr/bin/qemu-system-x86_64"

_COMMON_ARGUMENTS: Final = (
    "panic=-1",  # a panic reboots at once, and a reboot ends the domain
    # what the kernel would measure or try out on a virtual board, at length under emulation
    "tsc=reliable",
    "no_timer_check",
    "cryptomgr.notests",
)
KERNEL_ARGUMENTS: Final = (
    "console=ttyS0",
    # the first kernel lines before the console driver is up; `quiet` after it, so that these few are printed
    # (not earlyprintk, at which boot code prints without time stamps)
    "earlycon=uart8250,io,0x3f8,115200",
    "quiet",
    *_COMMON_ARGUMENTS,
)
# only panics: when this console speaks, the time of a kernel line is no longer that of its reading
VIRTIO_CONSOLE_ARGUMENTS: Final = ("console=hvc0", "loglevel=1", *_COMMON_ARGUMENTS)

USER_NETWORK: Final[Mapping[str, Any]] = {"address": "10.0.2.15", "prefix_length": 24, "gateway": "10.0.2.2"}
"""What a guest takes on QEMU's network in user mode, behind whose gateway is the host's loopback (qemu(1), -netdev)."""
_CTRL_ALT_DEL: Final = (29, 56, 111)
"""KEY_LEFTCTRL, KEY_LEFTALT, KEY_DELETE (Linux, input-event-codes.h)."""
_KEY_MILLISECONDS: Final = 50
STATISTICS_SECONDS: Final = 5
"""How old the guest's own view of its memory may be that libvirt tells; the guest is asked as often."""


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
    if domain.disk is None:
        root = _share(devices, str(domain.backing), ROOT_TAG)
        # nobody changes it, so what the guest has seen of it stays true
        binary = ET.SubElement(root, "binary", xattr="on")
        ET.SubElement(binary, "cache", mode="always")
        _on_root_bus(root, 2)
    else:
        disk = disk_elements(devices, domain, options.disk_bus, driver)
        if options.disk_bus == "virtio":
            _on_root_bus(disk, 2)
        elif options.disk_bus == "scsi":
            controller = ET.SubElement(devices, "controller", type="scsi", model="virtio-scsi")
            if options.iothreads:
                ET.SubElement(controller, "driver", iothread="1")
    interface = interface_element(devices, domain, options.network_model)
    if interface is not None:
        ET.SubElement(interface, "rom", enabled="no")
        _on_root_bus(interface, 3)
    if options.virtiofs is not None:
        _share(devices, str(options.virtiofs), "host")
    _console(devices, domain)
    ET.SubElement(devices, "controller", type="usb", model="none")
    reporting = {"freePageReporting": "on"} if options.free_page_reporting else {}
    balloon = ET.SubElement(devices, "memballoon", {"model": options.balloon, **reporting})
    if options.balloon == "virtio":  # without it, libvirt's statistics would stay those of the boot
        ET.SubElement(balloon, "stats", period=str(STATISTICS_SECONDS))


def _share(devices: ET.Element, directory: str, tag: str) -> ET.Element:
    shared = ET.SubElement(devices, "filesystem", type="mount", accessmode="passthrough")
    ET.SubElement(shared, "driver", type="virtiofs")
    ET.SubElement(shared, "source", dir=directory)
    ET.SubElement(shared, "target", dir=tag)
    return shared


def _console(devices: ET.Element, domain: Domain) -> None:
    virtio = domain.options.console == "virtio"
    console = ET.SubElement(
        devices, "console" if virtio else "serial", type="pty" if domain.console is None else "unix"
    )
    if domain.console is not None:
        ET.SubElement(console, "source", mode="connect", path=str(domain.console))
    ET.SubElement(console, "target", type="virtio" if virtio else "isa-serial", port="0")
    if virtio:
        _on_root_bus(ET.SubElement(devices, "controller", type="virtio-serial", index="0", ports="1"), 4)


def _fit(platform: Platform, options: DomainOptions) -> Platform:
    """The modules that a direct guest needs for the devices of ``options``, each of which costs boot time."""
    wanted = {
        "virtio_blk": options.root == "disk",
        "virtiofs": options.shares_memory,
        "overlay": options.root == "virtiofs",
        "virtio_net": options.network != "none",
        "virtio_balloon": options.balloon == "virtio",
        "virtio_console": options.console == "virtio",
    }
    modules = ("virtio_pci", *(name for name, needed in wanted.items() if needed))
    fitted = replace(platform, modules=modules, shared_root=options.root == "virtiofs")
    if options.console == "serial":
        return fitted
    return replace(fitted, kernel_arguments=VIRTIO_CONSOLE_ARGUMENTS, terminal="/dev/hvc0")


def _passthrough(root: ET.Element, domain: Domain) -> None:
    """What only libvirt's QEMU driver understands."""
    commandline = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}commandline")
    if domain.boot is not None:
        for word in ("-bios", FIRMWARE):
            ET.SubElement(commandline, f"{{{QEMU_NAMESPACE}}}arg", value=word)
    ET.SubElement(commandline, f"{{{QEMU_NAMESPACE}}}env", name="ISOMARK_OWNER", value=domain.owner)
    # libvirt would ask QEMU for each of some 400 CPU features one by one: 0.3 s of every start
    capabilities = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}capabilities")
    ET.SubElement(capabilities, f"{{{QEMU_NAMESPACE}}}del", capability="cpu-unavailable-features")


def _on_root_bus(device: ET.Element, slot: int) -> None:
    ET.SubElement(device, "address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{slot:02x}", function="0x0")


_NO_MICROVM: Final = (("machine", "microvm"),)
"""All devices here are PCI's, which it has not got; and an emulated CPU finds no clock in it, and often hangs."""
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
    # everything else that a direct guest needs is built into Debian's cloud kernel
    modules=("virtio_pci", "virtio_blk", "virtio_net"),
    disk="/dev/vda",
    terminal="/dev/ttyS0",
    autodestroy=True,
    write=_write,
    ask_to_end=press_ctrl_alt_del,
    fit=_fit,
    # an emulated CPU is of a kind whose cores have one thread, and shows no more
    unsupported=Unsupported(("threads",), (("cpu", "host-passthrough"), *_NO_MICROVM)),
)
KVM: Final = replace(QEMU, name="kvm", domain_type="kvm", unsupported=Unsupported(values=_NO_MICROVM))
