"""Virtual servers through libvirt: one driver for QEMU's emulated CPU and for KVM."""

from __future__ import annotations

import os
import platform
import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from xml.etree import ElementTree as ET

from bench.channel import Channel
from bench.driver import Lab, Launch
from bench.errors import DriverUnavailable, HostError, InstanceError
from bench.journal import Entry
from bench.model import Image, Kind, WorkloadImage
from vms import host, proof
from vms.connection import Connection, User, told, uri
from vms.console import ConsoleListener
from vms.disk import ROOM_BYTES, make_disk
from vms.domain import KERNEL_ARGUMENTS, Domain, Nic, domain_xml
from vms.graveyard import Graveyard
from vms.initramfs import boot_files, find_busybox, trial_archive, write_initrd
from vms.instance import VirtualServer
from vms.kernel import find_kernel
from vms.process import Hypervisor
from vms.qcow2 import write_overlay
from vms.removal import kill_hypervisors, remove_domain
from vms.schema import load_schema, validate

if TYPE_CHECKING:
    import libvirt

__all__ = ["LibvirtDriver", "kvm", "qemu", "remove_domain"]

MACHINE: Final = "q35"
Accelerator = Literal["qemu", "kvm"]


def qemu(lab: Lab) -> LibvirtDriver:
    """Virtual servers on a CPU that QEMU emulates (TCG): runs anywhere, slowly."""
    return LibvirtDriver(lab, "qemu")


def kvm(lab: Lab) -> LibvirtDriver:
    """Virtual servers on the host's CPU (KVM)."""
    return LibvirtDriver(lab, "kvm")


class LibvirtDriver:
    """Starts direct guests: kernel and initramfs from the host, our init, the payload on an ext4 disk."""

    kind: Kind = "vm"

    def __init__(self, lab: Lab, accelerator: Accelerator) -> None:
        self.name = accelerator
        self._accelerator: Accelerator = accelerator
        self._lab = lab
        self._connection = Connection(uri())
        self._graveyard = Graveyard(self._connection)

    def check(self) -> None:
        """Ask libvirt for this kind of domain and look for everything a start needs; KVM really boots a kernel.

        Raises:
            DriverUnavailable: something is missing; the hint says what would help.
        """
        host.require_programs()
        host.require_usable_kvm(required=self._accelerator == "kvm")
        kernel = find_kernel(self._lab.state)
        find_busybox()
        load_schema()
        self._require_domain_type()
        host.require_open_directories(self._user, self._lab.state, self._lab.scratch)
        if self._accelerator == "kvm":
            proof.require_kvm(self._lab, kernel)

    def describe(self) -> Mapping[str, str]:
        """Versions, machine, CPU and kernel; what differs from a container under ``parity``."""
        libvirt_version, qemu_version = self._connection.versions()
        kernel = find_kernel(self._lab.state).version
        emulated = self._accelerator == "qemu"
        return {
            "engine": f"libvirt {libvirt_version} / QEMU {qemu_version}",
            "accelerator": "TCG" if emulated else "KVM",
            "emulated": "yes" if emulated else "no",
            "machine": self._capabilities.findtext("machine") or MACHINE,
            "cpu": "max" if emulated else "host-passthrough",
            "guest kernel": kernel,
            "kernel arguments": " ".join(KERNEL_ARGUMENTS),
            "disk": "virtio, ext4, qcow2 overlay on raw, cache=writeback, io=threads",
            "balloon": "none",
            "parity": "\n".join(_parity(kernel, emulated=emulated)),
        }

    def build(self, image: WorkloadImage) -> Image:
        """Make the disk of ``image`` and the boot files, or find those made before.

        Raises:
            ImageError: the disk cannot be made.
            HostError: a program is missing, or there is no space.
            DriverUnavailable: there is no guest kernel or no busybox.
        """
        kernel = find_kernel(self._lab.state)
        booted, initramfs = boot_files(self._lab.state, kernel)
        disk = make_disk(image, self._lab.state / "disks")
        extra = (booted, initramfs)
        return Image(
            digest=image.digest,
            form="ext4 disk, kernel and initramfs",
            location=disk.path,
            # what is shipped is the kernel as packaged, what is kept and booted the one taken out of it
            compressed_bytes=disk.compressed_bytes + sum(path.stat().st_size for path in (kernel.image, initramfs)),
            unpacked_bytes=image.unpacked_bytes + sum(path.stat().st_size for path in extra),
            on_disk_bytes=disk.on_disk_bytes + sum(path.stat().st_blocks * 512 for path in extra),
            parts={
                "disk": str(disk.path),
                "kernel": str(booted),
                "kernel version": kernel.version,
                "initramfs": str(initramfs),
            },
        )

    def start(self, image: Image, launch: Launch) -> VirtualServer:
        """Create the domain and return as soon as libvirt lets it run.

        Raises:
            InstanceError: it could not be started; nothing of it is left.
        """
        spawned = time.monotonic()
        try:
            with ExitStack() as undo:
                server = self._start(image, launch, undo, spawned)
                server.owns(undo.pop_all())
                return server
        except (HostError, DriverUnavailable) as error:
            raise InstanceError(error.message, hint=error.hint) from error
        except OSError as error:
            raise InstanceError(f"the host refused: {error}", hint="df -h and isomark doctor may say why") from error

    def preview(self, launch: Launch) -> str:
        """The domain XML that ``start`` would hand to libvirt, with placeholders for files and UUID."""
        folder = self._lab.scratch / launch.name
        state = self._lab.state
        return domain_xml(
            self._domain(launch, str(uuid.UUID(int=0)), folder, state / "boot/KERNEL", state / "disks/DISK.raw")
        )

    def close(self) -> None:
        """See the last domains off and close the connection; idempotent."""
        self._graveyard.close()
        self._connection.close()

    def _start(self, image: Image, launch: Launch, undo: ExitStack, spawned: float) -> VirtualServer:
        if launch.limits.disk_bytes > ROOM_BYTES:
            raise InstanceError(
                f"the disk has room for {ROOM_BYTES} bytes, not for {launch.limits.disk_bytes}",
                hint="lower limits.disk in the suite",
            )
        identity = str(uuid.uuid4())
        folder = self._lab.scratch / launch.name
        kernel, backing = Path(image.parts["kernel"]), image.location
        domain = self._domain(launch, identity, folder, kernel, backing)
        xml = domain_xml(domain)
        validate(xml)
        folder.mkdir(mode=0o711)
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        self._write_files(domain, Path(image.parts["initramfs"]), trial_archive(launch))
        entry = self._lab.journal.own("domain", uri=self._connection.address, uuid=identity, name=launch.name)
        undo.callback(self._bury, entry)
        listener = undo.enter_context(ConsoleListener(domain.console, self._user))
        handle = self._create(xml)
        fd, pid = listener.accept()
        channel = Channel(fd, fd)
        undo.callback(channel.close)
        channel.push("spawned", spawned)
        hypervisor = undo.enter_context(Hypervisor(pid))
        address = launch.lease.address if launch.lease else None
        server = VirtualServer(channel, hypervisor, handle, address)
        undo.callback(server.kill)
        if domain.nic is not None and self._lab.network is not None:
            self._lab.network.adopt(domain.nic.interface)
        return server

    def _domain(self, launch: Launch, identity: str, folder: Path, kernel: Path, backing: Path) -> Domain:
        lease = launch.lease
        return Domain(
            accelerator=self._accelerator,
            name=launch.name,
            uuid=identity,
            owner=self._lab.journal.owner.id,
            cpus=launch.limits.cpus,
            memory_bytes=launch.limits.memory_bytes,
            kernel=kernel,
            initrd=folder / "initrd",
            disk=folder / "disk.qcow2",
            backing=backing,
            console=folder / "console",
            nic=None if lease is None else Nic(lease.interface, lease.mac),
            machine=MACHINE,
        )

    def _write_files(self, domain: Domain, initramfs: Path, trial: bytes) -> None:
        write_initrd(domain.initrd, initramfs, trial)
        write_overlay(domain.disk, domain.backing, domain.backing.stat().st_size)
        if self._user is not None:
            for path in (domain.initrd, domain.disk):
                os.chown(path, self._user.uid, self._user.gid)

    def _create(self, xml: str) -> libvirt.virDomain:
        import libvirt

        handle = self._connection.open()
        with told("libvirt cannot start the domain"):
            # should this process die, libvirtd destroys the domain by itself
            return handle.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)

    def _bury(self, entry: Entry) -> None:
        """Make sure that the process of the domain is dead, and only then call the domain gone."""
        kill_hypervisors(entry.what["uuid"])
        self._graveyard.add(entry.what["uuid"], entry.what["name"])
        self._lab.journal.gone(entry)

    @cached_property
    def _user(self) -> User | None:
        return self._connection.qemu_user()

    @cached_property
    def _capabilities(self) -> ET.Element:
        """What libvirt can do for this kind of domain (libvirt, formatdomaincaps)."""
        with told("libvirt offers no such domain"):
            handle = self._connection.open()
            return ET.fromstring(handle.getDomainCapabilities(None, "x86_64", MACHINE, self._accelerator))

    def _require_domain_type(self) -> None:
        try:
            offered = self._capabilities.findtext("domain")
        except InstanceError as error:
            raise DriverUnavailable(error.message, hint=error.hint) from error
        if offered != self._accelerator:
            raise DriverUnavailable(f"libvirt offers no domains of type {self._accelerator}", hint="script/bootstrap")


def _parity(kernel: str, *, emulated: bool) -> list[str]:
    """What a virtual server differs in from a process and a container, a sentence each."""
    sentences = [
        f"The virtual server runs its own kernel, {kernel}; processes and containers run on {platform.release()}.",
        "CPU mitigations in the virtual server are those its kernel chooses for the CPU that it sees.",
        "The virtual server's disk is cached twice, by its own kernel and by the host's (cache=writeback): direct "
        "input and output passes the first and may still be served from the host's memory.",
        "Its kernel is entered directly, without firmware or boot loader, and without randomising its address.",
        f"No limit on processes is set inside the virtual server, and its disk has room for {ROOM_BYTES >> 30} GiB.",
        "The payload is root in a machine of its own: no system call filter, no dropped capabilities, writable /sys.",
    ]
    if emulated:
        sentences.append("The virtual server's CPU is emulated in software: its speed says nothing about hardware.")
    return sentences
