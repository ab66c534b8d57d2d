"""A container as libvirt domain XML: a pure function, the same description giving the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from xml.etree import ElementTree as ET

from bench.network import Lease
from bench.units import KIB
from vms.domain import begin_xml, end_xml, text

BUSYBOX: Final = "/isomark/busybox-init"
"""Where the container finds our init's interpreter; busybox is itself only under a name that begins so."""
SCRIPT: Final = "/proc/self/fd/5"
"""libvirt numbers what it passes on from 3: two pipes, and the init."""
CAPABILITIES: Final = (
    "audit_write", "chown", "dac_override", "fowner", "fsetid", "kill", "mknod", "net_bind_service", "net_raw",
    "setfcap", "setgid", "setpcap", "setuid", "sys_chroot",
)  # fmt: skip
"""Docker's, and so the container's; libvirt's own choice leaves all but eight (formatdomain, "capabilities")."""
PERIOD_MICROSECONDS: Final = 100_000
_EMPTY_KIB: Final = 64


@dataclass(frozen=True)
class Container:
    """What a container is made of; all paths but ``files`` and ``directories`` are on the host.

    ``root`` is a directory that it may write to, ``busybox`` a static one. ``emulator`` is libvirt's controller process
    (``vms/lxc/controller.py``). ``files`` and ``directories`` inside are covered by empty ones.
    """

    name: str
    uuid: str
    owner: str
    cpus: int
    memory_bytes: int
    root: PurePosixPath
    busybox: PurePosixPath
    emulator: PurePosixPath
    lease: Lease | None = None
    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()


def container_xml(container: Container) -> str:
    """Return libvirt's XML for ``container`` (libvirt, formatdomain and drvlxc).

    Raises:
        ValueError: a name holds a character that XML cannot carry.
    """
    root = begin_xml("lxc", container.name, container.uuid, container.owner, container.memory_bytes)
    _limits(root, container)
    boot = ET.SubElement(root, "os")
    text(boot, "type", "exe", arch="x86_64")
    text(boot, "init", BUSYBOX)
    for word in ("sh", SCRIPT):
        text(boot, "initarg", word)
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "privnet")  # or one without an interface would have the host's network
    kept = ET.SubElement(features, "capabilities", policy="deny")
    for capability in CAPABILITIES:
        ET.SubElement(kept, capability, state="on")
    devices = ET.SubElement(root, "devices")
    text(devices, "emulator", str(container.emulator))
    _file_systems(devices, container)
    if container.lease is not None:
        _interface(devices, container.lease)
    ET.SubElement(devices, "console", type="pty")
    return end_xml(root)


def _limits(root: ET.Element, container: Container) -> None:
    memory = ET.SubElement(root, "memtune")
    # the second is on memory and swap together (version 2: on swap, virCgroupV2SetMemSwapHardLimit): no swap, which
    # would turn a limit on memory into one on speed
    for limit in ("hard_limit", "swap_hard_limit"):
        text(memory, limit, str(container.memory_bytes), unit="b")
    text(root, "vcpu", str(container.cpus))  # which limits nothing
    processor = ET.SubElement(root, "cputune")
    text(processor, "period", str(PERIOD_MICROSECONDS))
    text(processor, "quota", str(PERIOD_MICROSECONDS * container.cpus))


def _file_systems(devices: ET.Element, container: Container) -> None:
    _bound(devices, str(container.root), "/")
    _bound(devices, str(container.busybox), BUSYBOX, readonly=True)
    _in_memory(devices, "/dev/shm", container.memory_bytes // 2 // KIB)  # as on a machine of that size (tmpfs(5))
    for path in container.directories:
        _in_memory(devices, path, _EMPTY_KIB, readonly=True)
    for path in container.files:
        _bound(devices, "/dev/null", path, readonly=True)


def _bound(devices: ET.Element, source: str, target: str, *, readonly: bool = False) -> None:
    mount = ET.SubElement(devices, "filesystem", type="mount")
    ET.SubElement(mount, "source", dir=source)
    _target(mount, target, readonly=readonly)


def _in_memory(devices: ET.Element, target: str, kibibytes: int, *, readonly: bool = False) -> None:
    mount = ET.SubElement(devices, "filesystem", type="ram")
    ET.SubElement(mount, "source", usage=str(kibibytes), units="KiB")
    _target(mount, target, readonly=readonly)


def _target(mount: ET.Element, target: str, *, readonly: bool) -> None:
    ET.SubElement(mount, "target", dir=target)
    if readonly:
        ET.SubElement(mount, "readonly")


def _interface(devices: ET.Element, lease: Lease) -> None:
    """A veth pair: one end with its address in the container, the other on the host until the lab takes it."""
    interface = ET.SubElement(devices, "interface", type="ethernet")
    ET.SubElement(interface, "mac", address=lease.mac)
    ET.SubElement(interface, "ip", address=lease.address, family="ipv4", prefix=str(lease.prefix_length))
    ET.SubElement(interface, "route", family="ipv4", address="0.0.0.0", prefix="0", gateway=lease.gateway)
    ET.SubElement(interface, "target", dev=lease.interface)
    ET.SubElement(interface, "guest", dev="eth0")
