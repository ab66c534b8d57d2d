"""What a virtual server can do between its start and its end: stand still, be saved, be kept as it is, start again.

- The snapshot is of the disk alone and external: the overlay stays as it is, and the guest goes on in another on top of
  it. libvirt makes it for transient domains and under either firmware, where an internal one needs qcow2 for UEFI's
  variables too. With memory it would take what saving takes, which is measured by itself.
- A restored domain is not tied to our connection, unlike a started one: it is the journal that owns it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from bench import protocol
from bench.abilities import Verb
from bench.channel import Channel
from bench.errors import InstanceError
from bench.model import Line
from vms.connection import Connection
from vms.deadline import begin
from vms.domain import Domain, Platform
from vms.instance import END_SECONDS, VirtualServer
from vms.options import DomainOptions
from vms.qcow2 import write_overlay
from vms.qemu import press_ctrl_alt_del
from vms.removal import is_process_here, kill_hypervisors
from vms.running import Place, Running

if TYPE_CHECKING:
    import libvirt

    from vms.instance import AskToEnd

SAVED: Final = "saved"
OVERLAY: Final = "disk-{}.qcow2"
NOTICE_SECONDS: Final = 0.05
"""How late a save that failed may be noticed; one that succeeds is noticed at once."""


def missing(platform: Platform, options: DomainOptions) -> Mapping[Verb, str]:
    """What guests with ``options`` cannot do, and why."""
    if not platform.is_qemu:
        return {
            "snapshot": "libvirt's Xen driver has none",
            "reboot": "libvirt's Xen driver cannot change what a reboot does to a domain that runs",
        }
    reasons: dict[Verb, str] = {}
    if options.cpu == "host-passthrough" or (options.cpu == "default" and platform.domain_type == "kvm"):
        reasons["save"] = 'QEMU saves no CPU that has all features of the host; cpu = "host-model" does without some'
    if options.shares_memory:
        reasons["save"] = "QEMU saves no guest that shares its memory with virtiofs"
    if options.root != "disk":
        reasons["snapshot"] = "it has no disk"
    if options.guest == "image":
        reasons["reboot"] = "cloud-init brings the workload into a user's image at the first boot only"
    return reasons


@dataclass(frozen=True)
class Surroundings:
    """Where a domain runs and what it is made of.

    ``add_file`` makes one more file of the trial where the hypervisor can open it; its function gets the path.
    ``connect`` brings its card, which is a new one after each start, to the lab's network.
    """

    connection: Connection
    place: Place
    domain: Domain
    add_file: Callable[[str, Callable[[Path], object]], PurePosixPath]
    connect: Callable[[], None]


class ManagedServer(VirtualServer):
    """A virtual server that can do more than start and end (``bench.driver.Manageable``)."""

    def __init__(
        self,
        surroundings: Surroundings,
        running: Running,
        channel: Channel,
        ask_to_end: AskToEnd,
        address: str | None,
        own_disk_bytes: Callable[[], int],
    ) -> None:
        super().__init__(channel, running.life, running.handle, ask_to_end, address, own_disk_bytes)
        self._around = surroundings
        self._saved: PurePosixPath | None = None
        self._overlays = [surroundings.domain.disk]
        self._starts_again = False

    @property
    def verbs(self) -> Mapping[Verb, Callable[[], float]]:
        """What it can do, each within ``vms.deadline.CALL_SECONDS``; a hypervisor that hangs longer is killed."""
        able: dict[Verb, Callable[[], float]] = {"suspend": self._suspend, "resume": self._resume}
        without = self.lacks
        if "save" not in without:
            able |= {"save": self._save, "restore": self._restore}
        if "snapshot" not in without:
            able["snapshot"] = self._snapshot
        if "reboot" not in without:
            able["reboot"] = self._reboot
        return {verb: partial(self._in_time, f"{verb} the guest", call) for verb, call in able.items()}

    @property
    def lacks(self) -> Mapping[Verb, str]:
        """Why it cannot do the rest."""
        return missing(self._around.domain.platform, self._around.domain.options)

    def lines(self, timeout_seconds: float) -> Iterator[Line]:
        """Yield console lines until the hypervisor closes it; see ``VirtualServer.lines``.

        Once the init of a rebooted guest speaks, another reset, as after a panic, ends the domain as it did at first.
        When the payload has ended without that, so will the domain.
        """
        for line in super().lines(timeout_seconds):
            message = protocol.parse(line.text)
            if self._starts_again and isinstance(message, protocol.Init):
                self._in_time("end the guest at its next reboot", partial(self._let_reboots, again=False))
            elif not self._starts_again and isinstance(message, protocol.Exit):
                self._around.place.hang_up()
            yield line

    def stop(self, timeout_seconds: float) -> bool:
        """Ask the guest to end the payload and power off; return whether it ended in time."""
        if self._starts_again and not self._life.wait(0):
            self._in_time("end the guest at its next reboot", partial(self._let_reboots, again=False))
        return super().stop(timeout_seconds)

    def _ask(self) -> None:
        super()._ask()
        self._around.place.hang_up()

    def _give_up(self) -> None:
        """Kill the hypervisor, which ends libvirt's waiting for it; one that is being restored has but its UUID yet."""
        if is_process_here(self._around.connection.address):
            kill_hypervisors(self._around.domain.uuid)

    def _suspend(self) -> float:
        self._domain.suspend()
        return time.monotonic()

    def _resume(self) -> float:
        self._domain.resume()
        return time.monotonic()

    def _save(self) -> float:
        """Libvirt's call returns late where process 1 is slow to reap the hypervisor, so its end is seen by itself."""
        self._saved = self._saved or self._around.add_file(SAVED, Path.touch)
        self._around.place.hang_up()
        saving = begin(partial(self._domain.save, str(self._saved)))
        while not (ended := self._life.wait(NOTICE_SECONDS)) and not saving.done():
            continue
        if not ended:
            saving.result()
            ended = self._life.wait(END_SECONDS)
        at_seconds = time.monotonic()
        saving.result()
        if not ended:
            raise InstanceError(f"the guest is saved, and {self._life.title} still runs")
        return at_seconds

    def _restore(self) -> float:
        running = self._around.place.run(partial(self._start_from, str(self._saved)))
        self._channel.reconnect(running.console, running.console)
        self._life, self._domain = running.life, running.handle
        self._around.connect()
        return time.monotonic()

    def _start_from(self, path: str, paused: bool) -> libvirt.virDomain:
        import libvirt

        handle = self._around.connection.open()
        state = libvirt.VIR_DOMAIN_SAVE_PAUSED if paused else libvirt.VIR_DOMAIN_SAVE_RUNNING
        handle.restoreFlags(path, None, state)
        return handle.lookupByUUIDString(self._around.domain.uuid)

    def _snapshot(self) -> float:
        import libvirt

        below = self._overlays[-1]
        assert below is not None
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            # made by us, so that it belongs to the user that QEMU runs as
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
        )
        disks = _disks(self._domain)
        size = self._domain.blockInfo(disks[str(below)])[0]
        write = partial(write_overlay, backing=below, size_bytes=size, backing_format="qcow2")
        overlay = self._around.add_file(OVERLAY.format(len(self._overlays)), write)
        self._domain.snapshotCreateXML(_snapshot_xml(disks, str(below), str(overlay)), flags)
        at_seconds = time.monotonic()
        self._overlays.append(overlay)
        return at_seconds

    def _reboot(self) -> float:
        """Every kind of guest takes Ctrl-Alt-Del as the wish to reboot; what comes of it is libvirt's to decide."""
        self._let_reboots(again=True)
        press_ctrl_alt_del(self._domain)
        return time.monotonic()

    def _let_reboots(self, *, again: bool) -> None:
        """Choose what a reboot does to the domain from now on: start it ``again``, or end it as at first."""
        import libvirt

        action = libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_RESTART if again else libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY
        self._domain.setLifecycleAction(libvirt.VIR_DOMAIN_LIFECYCLE_REBOOT, action, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        self._starts_again = again


def _disks(domain: libvirt.virDomain) -> dict[str, str]:
    """The names by which libvirt knows the disks, by their files."""
    found = {}
    for disk in ET.fromstring(domain.XMLDesc()).iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None:
            found[source.get("file", "")] = target.get("dev", "")
    return found


def _snapshot_xml(disks: Mapping[str, str], below: str, overlay: str) -> str:
    """A snapshot of the disk ``below`` alone, after which it is written to ``overlay`` (libvirt, formatsnapshot)."""
    root = ET.Element("domainsnapshot")
    listed = ET.SubElement(root, "disks")
    for file, name in disks.items():
        disk = ET.SubElement(listed, "disk", name=name, snapshot="external" if file == below else "no")
        if file == below:
            ET.SubElement(disk, "driver", type="qcow2")
            ET.SubElement(disk, "source", file=overlay)
    return ET.tostring(root, encoding="unicode")
