"""The driver ``lxc``: containers by libvirt's own engine, from the very tree that the driver ``container`` starts."""

from __future__ import annotations

import os
import secrets
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from bench.driver import Lab, Launch
from bench.errors import DriverUnavailable, InstanceError
from bench.journal import Entry
from bench.model import Image, Kind, Limits, WorkloadImage
from vms.connection import Connection, is_remote, shown, told
from vms.deadline import in_time
from vms.graveyard import Graveyard
from vms.initramfs import find_busybox
from vms.instance import VirtualServer, started
from vms.lxc import covered
from vms.lxc.container import BUSYBOX, Container, container_xml
from vms.lxc.controller import controller, misplaced_cgroups
from vms.lxc.life import ContainerLife, kill_holders
from vms.lxc.parity import limits, parity
from vms.lxc.pipes import Pipes
from vms.lxc.root import allocated_bytes, make_root
from vms.running import CREATE
from vms.schema import load_schema, validate

if TYPE_CHECKING:
    import libvirt

URI_VARIABLE: Final = "ISOMARK_LXC_URI"
SYSTEM_URI: Final = "lxc:///system"
PROBE_SECONDS: Final = 10.0
FORM: Final = "unpacked tree, overlayfs lower layer"
LAY_OUT: Final = "make its root"


class LxcDriver:
    """Starts containers through the libvirt at ``ISOMARK_LXC_URI``, which must be one of this host, as root."""

    name = "lxc"
    kind: Kind = "container"

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._connection = Connection(os.environ.get(URI_VARIABLE) or SYSTEM_URI)
        self._graveyard = Graveyard(self._connection)

    def check(self) -> None:
        """Start a container of an empty image and see it end well.

        Raises:
            DriverUnavailable: it does not; the hint says what would help.
        """
        if is_remote(self._connection.address):
            raise DriverUnavailable(
                f"{shown(self._connection.address, self._connection.address)} is another host's libvirt, "
                "and the image's tree is here",
                hint=f"set {URI_VARIABLE} to {SYSTEM_URI}, or measure there",
            )
        find_busybox()
        load_schema()
        try:
            assert self._emulator
            self._probe()
        except InstanceError as error:
            raise DriverUnavailable(error.message, hint=error.hint) from error

    def describe(self) -> Mapping[str, str]:
        """Engine, isolation, limits, and what differs from the built-in container under ``parity``."""
        libvirt_version, kernel = self._connection.versions()
        described = {
            "engine": f"libvirt {libvirt_version} / LXC on Linux {kernel}",
            "namespaces": "mount, pid, net, ipc, uts",
            "security": "Docker's fourteen capabilities, no system call filter, no user namespace",
            "limits": limits(),
            "root file system": FORM,
            "network": "veth pair on the lab bridge" if self._lab.network else "loopback only",
            "parity": "\n".join(parity()),
        }
        if (misplaced := misplaced_cgroups()) is not None:
            described["cgroups"] = f"versions 1 and 2; {misplaced} is moved out of libvirt's way"
        return described

    def build(self, image: WorkloadImage) -> Image:
        """Return the unpacked tree, which containers start from as it is."""
        return image.as_tree(FORM)

    def start(self, image: Image, launch: Launch) -> VirtualServer:
        """Create the container and return as soon as libvirt has started its process 1.

        Raises:
            InstanceError: it could not be started; nothing of it is left.
        """
        return started(partial(self._start, image, launch, time.monotonic()))

    def preview(self, launch: Launch) -> str:
        """The domain XML that ``start`` would hand to libvirt, with a placeholder for its UUID."""
        root = self._lab.scratch / launch.name / "root"
        return container_xml(self._container(launch, str(uuid.UUID(int=0)), root, Path("BUSYBOX"), Path("LIBVIRT_LXC")))

    def close(self) -> None:
        """See the last containers off and close the connection; idempotent."""
        self._graveyard.close()
        self._connection.close()

    def _start(self, image: Image, launch: Launch, spawned: float, undo: ExitStack) -> VirtualServer:
        folder = self._lab.scratch / launch.name
        root = make_root(image.location, folder, self._lab.journal, undo)
        identity = str(uuid.uuid4())
        emulator = controller(self._emulator, self._lab.state)
        xml = container_xml(self._container(launch, identity, root, find_busybox(), emulator))
        validate(xml)
        with Pipes(launch) as pipes:
            entry = self._lab.journal.own("domain", uri=self._connection.address, uuid=identity, name=launch.name)
            undo.callback(self._bury, entry, pipes.inode)
            asked = time.monotonic()
            domain = self._create(xml, pipes.theirs)
            channel = pipes.channel(undo)
        channel.push("spawned", spawned)
        channel.step(LAY_OUT, spawned)
        channel.step(CREATE, asked)
        life = ContainerLife(domain.ID(), launch.name, undo)
        address = launch.lease.address if launch.lease else None
        instance = VirtualServer(channel, life, domain, _send_sigterm, address, partial(allocated_bytes, folder))
        undo.callback(instance.kill)
        if launch.lease is not None and self._lab.network is not None:
            self._lab.network.adopt(launch.lease.interface)
        instance.send("")  # init.sh waits for it
        return instance

    def _container(self, launch: Launch, identity: str, root: Path, busybox: Path, emulator: Path) -> Container:
        files, directories = covered.paths()
        return Container(
            name=launch.name,
            uuid=identity,
            owner=self._lab.journal.owner.id,
            cpus=launch.limits.cpus,
            memory_bytes=launch.limits.memory_bytes,
            root=PurePosixPath(root),
            busybox=PurePosixPath(busybox),
            emulator=PurePosixPath(emulator),
            lease=launch.lease,
            files=files,
            directories=directories,
        )

    def _create(self, xml: str, descriptors: list[int]) -> libvirt.virDomain:
        import libvirt

        handle = self._connection.open()
        # should this process die, libvirtd destroys the container by itself
        create = partial(handle.createXMLWithFiles, xml, descriptors, libvirt.VIR_DOMAIN_START_AUTODESTROY)
        return in_time("start the container", create)

    def _bury(self, entry: Entry, pipe: int) -> None:
        """Make sure that nothing of it is left, and only then call it gone; libvirt will forget it by itself."""
        kill_holders(entry.what["name"], pipe)
        self._graveyard.add(entry.what["uuid"], entry.what["name"])
        self._lab.journal.gone(entry)

    @cached_property
    def _emulator(self) -> str:
        """The controller program of libvirt, as its capabilities name it.

        Raises:
            DriverUnavailable: there is no such libvirt, or it has no containers.
        """
        try:
            handle = self._connection.open()
        except DriverUnavailable as error:
            if "no connection driver available" not in error.message:
                raise
            raise DriverUnavailable(
                "this libvirt has no driver for containers",
                hint="apt-get install libvirt-daemon-driver-lxc, then restart libvirtd",
            ) from error
        with told():
            capabilities = ET.fromstring(handle.getCapabilities())
        found = capabilities.findtext("guest[os_type='exe']/arch[@name='x86_64']/emulator")
        if not found:
            raise DriverUnavailable(
                "this libvirt offers no containers for x86_64", hint="virsh capabilities shows them"
            )
        return found

    def _probe(self) -> None:
        tree = self._lab.scratch / f"check-{secrets.token_hex(4)}-tree"
        lease = self._lab.network.lease() if self._lab.network is not None else None
        name = f"iso-check-{secrets.token_hex(4)}"
        request = Launch(name, (BUSYBOX, "true"), {}, Limits(), lease)
        with self._lab.journal.owning("directory", path=str(tree)):
            tree.mkdir()
            try:
                image = Image("", FORM, tree, None, None, None)
                with self.start(image, request) as instance:
                    texts = [line.text for line in instance.lines(PROBE_SECONDS)]
            finally:
                tree.rmdir()
        if "isomark exit 0" not in texts:
            raise InstanceError(f"a container of an empty image does not end well: {' '.join(texts[-3:])}")


def lxc(lab: Lab) -> LxcDriver:
    """Containers by libvirt's LXC."""
    return LxcDriver(lab)


def _send_sigterm(domain: libvirt.virDomain) -> None:
    """Ask process 1 to end, which asks the payload; without the flag libvirt would look for /dev/initctl first."""
    import libvirt

    domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_SIGNAL)
