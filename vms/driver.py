"""Virtual servers through libvirt: one driver for every hypervisor, which a ``Platform`` describes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from bench.driver import Lab, Launch
from bench.errors import DriverUnavailable, HostError, InstanceError, OptionsError
from bench.journal import Entry
from bench.model import Image, Kind, WorkloadImage
from vms import host, proof
from vms.connection import Connection, User, is_remote, told, uri
from vms.disk import ROOM_BYTES
from vms.domain import Domain, Nic, Platform, domain_xml
from vms.forms import build_direct, build_full
from vms.full.disk import ARGUMENTS as FULL_ARGUMENTS
from vms.graveyard import Graveyard
from vms.guest_files import KERNEL, FileStore, GuestFiles, LocalFiles, RemoteFiles, places
from vms.initramfs import find_busybox
from vms.instance import VirtualServer
from vms.kernel import find_kernel
from vms.life import bury
from vms.modules import load_order
from vms.options import DEFAULTS, DomainOptions, parse_options
from vms.parity import parity
from vms.qemu import KVM, QEMU
from vms.removal import is_process_here, kill_hypervisors, remove_domain
from vms.running import run_here, run_through_libvirt
from vms.schema import load_schema, validate
from vms.volumes import remove_volume
from vms.xen import XEN_HVM, XEN_PV, XEN_PVH

if TYPE_CHECKING:
    import libvirt

__all__ = [
    "LibvirtDriver",
    "kvm",
    "qemu",
    "remove_domain",
    "remove_volume",
    "xen_hvm",
    "xen_pv",
    "xen_pvh",
]

PLATFORMS: Final = (QEMU, KVM, XEN_PV, XEN_PVH, XEN_HVM)


def qemu(lab: Lab) -> LibvirtDriver:
    """Virtual servers on a CPU that QEMU emulates (TCG): runs anywhere, slowly."""
    return LibvirtDriver(lab, QEMU)


def kvm(lab: Lab) -> LibvirtDriver:
    """Virtual servers on the host's CPU (KVM)."""
    return LibvirtDriver(lab, KVM)


def xen_pv(lab: Lab) -> LibvirtDriver:
    """Virtual servers of Xen whose kernel knows that it has no machine of its own."""
    return LibvirtDriver(lab, XEN_PV)


def xen_pvh(lab: Lab) -> LibvirtDriver:
    """Virtual servers of Xen with the processor's help and no emulated board."""
    return LibvirtDriver(lab, XEN_PVH)


def xen_hvm(lab: Lab) -> LibvirtDriver:
    """Virtual servers of Xen with an emulated board."""
    return LibvirtDriver(lab, XEN_HVM)


class LibvirtDriver:
    """Starts direct guests (kernel, our init, the payload on an ext4 disk) or full ones (a server's disk)."""

    kind: Kind = "vm"

    def __init__(self, lab: Lab, platform: Platform, options: DomainOptions | None = None) -> None:
        self.name = platform.name
        self._platform = platform
        self._options = options or DEFAULTS
        self._lab = lab
        self._connection = Connection(uri(platform))
        self._is_process = is_process_here(self._connection.address)
        self._graveyard = Graveyard(self._connection)
        self._files: FileStore
        if is_remote(self._connection.address):
            self._files = RemoteFiles(lab, self._connection)
        else:
            self._files = LocalFiles(lab, lambda: self._user)

    def configured(self, options: Mapping[str, object]) -> LibvirtDriver:
        """Return this driver with a suite's ``options`` (``vms/options.py``).

        Raises:
            OptionsError: one is unknown, has a bad value or is nothing that the hypervisor knows.
        """
        parsed = parse_options(options)
        if faults := self._platform.unsupported.faults(parsed):
            raise OptionsError(faults)
        self.close()
        return LibvirtDriver(self._lab, self._platform, parsed)

    def check(self) -> None:
        """Ask libvirt for this kind of domain and look for everything a start needs; KVM really boots a kernel.

        Raises:
            DriverUnavailable: something is missing; the hint says what would help.
        """
        host.require_programs(() if self._is_process else host.EMULATORS)
        if self._is_process:
            host.require_usable_kvm(required=self._platform.domain_type == "kvm")
        kernel = find_kernel(self._lab.state)
        if self._options.guest == "direct":
            load_order(kernel.modules, self._platform.modules)
            find_busybox()
        load_schema()
        self._require_domain_type()
        if self._is_process:
            host.require_open_directories(self._user, self._lab.state, self._lab.scratch)
            if self._platform.domain_type == "kvm":
                proof.require_kvm(self._lab, kernel)

    def describe(self) -> Mapping[str, str]:
        """Versions, machine, CPU and kernel; what differs from a container under ``parity``."""
        libvirt_version, version = self._connection.versions()
        platform, options = self._platform, self._options
        kernel = find_kernel(self._lab.state).version
        emulated = self._is_emulated()
        described = {
            "engine": f"libvirt {libvirt_version} / {platform.title} {version}",
            "accelerator": {"qemu": "TCG", "kvm": "KVM", "xen": "Xen"}[platform.domain_type],
            "emulated": "yes" if emulated else "no",
            "machine": self._capabilities.findtext("machine") or platform.machine,
            "guest kernel": kernel,
            "guest": options.guest,
            "kernel arguments": " ".join(platform.kernel_arguments if options.guest == "direct" else FULL_ARGUMENTS),
        }
        if platform.is_qemu:
            accelerated = platform.domain_type == "kvm"
            default = "host-passthrough" if accelerated else "max"
            described |= {
                "cpu": default if options.cpu == "default" else options.cpu,
                "disk": f"virtio, ext4, qcow2 overlay on raw, cache={options.cache}, io={options.io}",
                "balloon": options.balloon,
            }
        else:
            described["disk"] = "xen-blkfront, ext4, qcow2 overlay on raw, qdisk"
        changed = {name: str(value) for name, value in vars(options).items() if value != getattr(DEFAULTS, name)}
        if changed:
            described["options"] = ", ".join(f"{name} {value}" for name, value in changed.items())
        if not self._is_process:
            described["host"] = self._connection.address
        described["parity"] = "\n".join(parity(platform, options, kernel, emulated=emulated))
        return described

    def build(self, image: WorkloadImage) -> Image:
        """Make the disk of ``image`` and the boot files, or find those made before; bring them to the host.

        Raises:
            ImageError: the disk cannot be made.
            HostError: a program is missing, or there is no space.
            DriverUnavailable: there is no guest kernel or no busybox.
            InstanceError: they cannot be uploaded.
        """
        make = build_full if self._options.guest == "full" else build_direct
        built = make(image, self._lab.state, self._platform)
        self._files.keep(built)
        return built

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
        state = self._lab.state
        parts = {} if self._options.guest == "full" else {KERNEL: str(state / "boot/KERNEL")}
        image = Image("", "", state / "disks/DISK.raw", None, None, None, parts)
        files = places(image, PurePosixPath(self._lab.scratch / launch.name))
        return domain_xml(self._domain(launch, str(uuid.UUID(int=0)), files))

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
        files = self._files.lay_out(image, launch, undo)
        user = self._user
        domain = replace(self._domain(launch, identity, files), keep_owners=user is not None)
        xml = domain_xml(domain)
        validate(xml)
        entry = self._lab.journal.own("domain", uri=self._connection.address, uuid=identity, name=launch.name)
        undo.callback(self._bury, entry)
        if self._is_process:
            running = run_here(domain, xml, self._create, user, undo)
        else:
            running = run_through_libvirt(domain, xml, self._create, self._connection, undo)
        running.channel.push("spawned", spawned)
        address = launch.lease.address if launch.lease and domain.nic else None
        server = VirtualServer(running.channel, running.life, running.handle, self._platform, address)
        undo.callback(server.kill)
        if domain.nic is not None and self._options.network == "lab" and self._lab.network is not None:
            self._lab.network.adopt(domain.nic.interface)
        return server

    def _domain(self, launch: Launch, identity: str, files: GuestFiles) -> Domain:
        return Domain(
            platform=self._platform,
            name=launch.name,
            uuid=identity,
            owner=self._lab.journal.owner.id,
            cpus=launch.limits.cpus,
            memory_bytes=launch.limits.memory_bytes,
            boot=files.boot,
            disk=files.disk,
            backing=files.backing,
            seed=files.seed,
            nvram=files.nvram if self._options.firmware == "ovmf" else None,
            console=files.console if self._is_process else None,
            nic=self._nic(launch),
            options=self._options,
        )

    def _nic(self, launch: Launch) -> Nic | None:
        """The lab's network is on this host, and its tap QEMU's; any other is wherever the options say."""
        if launch.lease is None or (self._options.network == "lab" and not self._is_process):
            return None
        return Nic(launch.lease.interface, launch.lease.mac)

    def _create(self, xml: str, flags: int = 0) -> libvirt.virDomain:
        import libvirt

        handle = self._connection.open()
        # should this process die, libvirtd destroys the domain by itself
        tied = libvirt.VIR_DOMAIN_START_AUTODESTROY if self._platform.autodestroy else 0
        with told("libvirt cannot start the domain"):
            return handle.createXML(xml, tied | flags)

    def _bury(self, entry: Entry) -> None:
        """Make sure that the domain is dead, and only then call it gone."""
        if self._is_process:
            kill_hypervisors(entry.what["uuid"])
            self._graveyard.add(entry.what["uuid"], entry.what["name"])
        else:
            bury(self._connection, entry.what["uuid"])
        self._lab.journal.gone(entry)

    def _is_emulated(self) -> bool:
        """Whether the guest's CPU is software: QEMU's own, or that of a Xen which itself runs in such a machine."""
        return self._platform.domain_type == "qemu" or (
            self._platform.domain_type == "xen" and host.is_nested_xen(self._connection)
        )

    @cached_property
    def _user(self) -> User | None:
        return self._connection.qemu_user()

    @cached_property
    def _capabilities(self) -> ET.Element:
        """What libvirt can do for this kind of domain (libvirt, formatdomaincaps)."""
        platform = self._platform
        machine = self._options.machine or platform.machine
        with told("libvirt offers no such domain"):
            handle = self._connection.open()
            return ET.fromstring(handle.getDomainCapabilities(None, "x86_64", machine, platform.domain_type))

    def _require_domain_type(self) -> None:
        try:
            offered = self._capabilities.findtext("domain")
        except InstanceError as error:
            raise DriverUnavailable(error.message, hint=error.hint) from error
        if offered != self._platform.domain_type:
            raise DriverUnavailable(
                f"libvirt offers no domains of type {self._platform.domain_type}", hint="script/bootstrap"
            )
