"""Virtual servers through libvirt: one driver for every hypervisor, which a ``Platform`` describes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from bench.abilities import House
from bench.channel import Channel
from bench.driver import Lab, Launch
from bench.errors import DriverUnavailable, ImageError, InstanceError, OptionsError
from bench.journal import Entry
from bench.model import Image, Kind, Step, WorkloadImage
from bench.network import Lease
from vms import host, proof
from vms.connection import Connection, User, is_remote, shown, told, uri
from vms.deadline import in_time
from vms.description import describe
from vms.disk import ROOM_BYTES
from vms.domain import Domain, Nic, Platform, domain_xml
from vms.forms import build_form, describe_form, expected_form
from vms.full.user_image import inspect_image
from vms.graveyard import Graveyard
from vms.guest_files import FileStore, GuestFiles, LocalFiles, RemoteFiles, places
from vms.house import read_house
from vms.huge_pages import require_huge_pages
from vms.instance import VirtualServer, press_power_button, started
from vms.life import bury
from vms.lifecycle import ManagedServer, Surroundings
from vms.onlookers import Onlookers
from vms.options import DEFAULTS, DomainOptions, parse_options
from vms.parts import require_parts
from vms.qemu import KVM, QEMU, USER_NETWORK
from vms.removal import is_process_here, kill_hypervisors, remove_domain
from vms.running import Here, Place, ThroughLibvirt
from vms.schema import validate
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

LAY_OUT: Final = "make its disk"


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
        self._options = options or DEFAULTS
        self._platform = platform.fit(platform, self._options)
        if self._options.guest != "direct":
            self._platform = replace(self._platform, ask_to_end=press_power_button)
        self._lab = lab
        self._connection = Connection(uri(platform))
        self._consoles = Connection(uri(platform))
        self._is_process = is_process_here(self._connection.address)
        self._graveyard = Graveyard(self._connection)
        self._built: Image | None = None
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
        if parsed.root == "virtiofs" and not self._is_process:
            elsewhere = shown(self._connection.address, self._connection.address)
            raise OptionsError([("root", f"the image's directory is on this host, not at {elsewhere}")])
        if parsed.image is not None:
            try:
                inspect_image(parsed.image)
            except ImageError as error:
                raise OptionsError([("image", f"{error.message}; {error.hint}")]) from error
        self.close()
        return LibvirtDriver(self._lab, self._platform, parsed)

    def check(self) -> None:
        """Ask libvirt for this kind of domain and look for everything a start needs; KVM really boots a kernel.

        Raises:
            DriverUnavailable: something is missing; the hint says what would help.
        """
        kernel = require_parts(self._lab.state, self._platform, self._options, here=self._is_process)
        self._require_domain_type()
        if self._options.huge_pages:
            require_huge_pages(self._connection, 1)
        if self._is_process:
            host.require_giving_to(self._user)
            host.require_open_directories(self._user, self._lab.state, self._lab.scratch)
            if self._platform.domain_type == "kvm":
                proof.require_kvm(self._lab, kernel)

    def describe(self) -> Mapping[str, str]:
        """Versions, machine, CPU and kernel; what differs from a container under ``parity``."""
        return describe(
            self._platform,
            self._options,
            self._connection,
            self._capabilities.findtext("machine") or self._platform.machine,
            describe_form(self._lab.state, self._platform, self._options, self._built),
            emulated=self._is_emulated(),
            here=self._is_process,
        )

    def build(self, image: WorkloadImage) -> Image:
        """Make the disk of ``image`` and the boot files, or find those made before; bring them to the host.

        Raises:
            ImageError: the disk cannot be made, or the user's is none that may be used.
            HostError: a program is missing, or there is no space.
            DriverUnavailable: there is no guest kernel, no busybox or no UEFI.
            InstanceError: they cannot be uploaded.
        """
        built = build_form(image, self._lab.state, self._platform, self._options)
        self._files.keep(built)
        if not self._is_process:
            self._consoles.open()  # not within the first start
        self._built = built
        return built

    def start(self, image: Image, launch: Launch) -> VirtualServer:
        """Create the domain and return as soon as libvirt lets it run.

        Raises:
            InstanceError: it could not be started; nothing of it is left.
        """
        return started(partial(self._start, image, launch, time.monotonic()))

    def preview(self, launch: Launch) -> str:
        """The domain XML that ``start`` would hand to libvirt, with placeholders for files and UUID."""
        image = expected_form(self._lab.state, self._options)
        files = places(image, PurePosixPath(self._lab.scratch / launch.name))
        return domain_xml(self._domain(launch, str(uuid.UUID(int=0)), files))

    def house(self) -> House | None:
        """The memory of another host than this, or of Xen; ``None`` where each domain is a process of this kernel.

        Raises:
            InstanceError: libvirt does not tell.
        """
        return None if self._is_process else read_house(self._connection, xen=not self._platform.is_qemu)

    @property
    def on_huge_pages(self) -> bool:
        """Whether the guests' memory is on huge pages."""
        return self._options.huge_pages

    def close(self) -> None:
        """See the last domains off and close the connection; idempotent."""
        self._graveyard.close()
        self._consoles.close()
        self._connection.close()

    def _start(self, image: Image, launch: Launch, spawned: float, undo: ExitStack) -> VirtualServer:
        if launch.limits.disk_bytes > ROOM_BYTES and self._options.guest != "image":
            raise InstanceError(
                f"the disk has room for {ROOM_BYTES} bytes, not for {launch.limits.disk_bytes}",
                hint="lower limits.disk in the suite",
            )
        launch = replace(launch, lease=self._lease(launch))
        identity = str(uuid.uuid4())
        files = self._files.lay_out(image, launch, undo)
        later = undo.enter_context(ExitStack())  # entered here, so that it is undone when the domain is dead
        user = self._user
        domain = replace(self._domain(launch, identity, files), keep_owners=user is not None)
        xml = domain_xml(domain)
        validate(xml)
        if self._options.huge_pages:
            require_huge_pages(self._connection, domain.memory_bytes)
        entry = self._lab.journal.own("domain", uri=self._connection.address, uuid=identity, name=launch.name)
        undo.callback(self._bury, entry)
        place = self._place(domain, undo)
        running = place.run(partial(self._create, xml))
        channel = Channel(running.console, running.console)
        undo.callback(channel.close)
        if domain.console is not None:
            undo.enter_context(Onlookers(Path(domain.console), channel))
        channel.push("spawned", spawned)
        for step in (Step(LAY_OUT, spawned), *running.steps):
            channel.step(step.name, step.at_seconds)
        address = launch.lease.address if launch.lease and self._options.network != "user" else None
        add, connect = partial(self._files.add, launch, later), partial(self._connect, domain)
        around = Surroundings(self._connection, place, domain, add, connect)
        own_disk = partial(self._files.allocated_bytes, files)
        server = ManagedServer(around, running, channel, self._platform.ask_to_end, address, own_disk)
        undo.callback(server.kill)
        connect()
        return server

    def _place(self, domain: Domain, undo: ExitStack) -> Place:
        if not self._is_process:
            return undo.enter_context(ThroughLibvirt(self._connection, self._consoles, domain.uuid))
        assert domain.console is not None
        return undo.enter_context(Here(Path(domain.console), domain.name, self._user))

    def _connect(self, domain: Domain) -> None:
        if domain.nic is not None and self._options.network == "lab" and self._lab.network is not None:
            self._lab.network.adopt(domain.nic.interface)

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
            firmware=files.firmware,
            backing_format=files.backing_format,
            console=files.console if self._is_process else None,
            nic=self._nic(launch),
            options=self._options,
        )

    def _lease(self, launch: Launch) -> Lease | None:
        """The address that the guest takes: without a card none, on a network of QEMU's own one of that."""
        if launch.lease is None or self._nic(launch) is None:
            return None
        return replace(launch.lease, **USER_NETWORK) if self._options.network == "user" else launch.lease

    def _nic(self, launch: Launch) -> Nic | None:
        """The lab's network is on this host, and its tap QEMU's; any other is wherever the options say."""
        network = self._options.network
        if launch.lease is None or network == "none" or (network == "lab" and not self._is_process):
            return None
        return Nic(launch.lease.interface, launch.lease.mac)

    def _create(self, xml: str, paused: bool) -> libvirt.virDomain:
        import libvirt

        handle = self._connection.open()
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        # should this process die, libvirtd destroys the domain by itself
        tied = libvirt.VIR_DOMAIN_START_AUTODESTROY if self._platform.autodestroy else 0
        return in_time("start the domain", partial(handle.createXML, xml, tied | flags))

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
