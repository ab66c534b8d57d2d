"""What may be chosen about a virtual server beside its limits, and what a careful operator would choose.

In a suite these are the table ``[options.DRIVER]``; ``parse_options`` checks one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from bench.errors import OptionsError

Cpu = Literal["default", "maximum", "host-passthrough", "host-model"]
Cache = Literal["none", "writeback", "writethrough", "directsync", "unsafe"]
Io = Literal["threads", "native", "io_uring"]
_DIRECT_CACHES: Final = ("none", "directsync")


@dataclass(frozen=True)
class DomainOptions:
    """Each option with its default and the reason for that.

    guest (direct): ``direct`` enters the kernel at once with our init, the least a virtual server can be. ``full``
        is a server image with boot loader and systemd, which takes ten times as long to start: a question of its own.
    sockets, cores, threads (0): 0 is one socket with a core for each CPU granted. A guest that sees a socket for each
        CPU, as hypervisors default to, believes that they share no cache and schedules for a machine that is not there.
    pin (none): for each virtual CPU the host's CPUs that it may run on, like ``["2", "3-4"]``. Containers get a number
        of CPUs and no particular ones; a pinned guest would be compared with an unpinned container.
    cpu (default): the host's own for hardware acceleration (a named model hides instructions that the container has);
        all that can be emulated for TCG. Xen decides by itself.
    huge_pages (false): faster under memory load, but they must be reserved on the host beforehand and are then lost to
        all others, so the host's memory figure would be the reservation and not the guest.
    balloon (none): a balloon moves memory between host and guest at moments of its own, which blurs the reading of
        what an idle guest costs. ``virtio`` adds one, for libvirt's statistics.
    free_page_reporting (false): the guest gives freed pages back to the host; needs the balloon, and costs both
        of them time. For density that is right, for a first comparison it is one more moving part.
    disk_bus (virtio): the paravirtual disk. ``scsi`` and ``sata`` are for full guests whose image wants them.
    cache (writeback): as a container's files do, reads go through the host's page cache and writes reach the device
        at fsync. ``none`` makes every guest read its programs from the device at each boot.
    io (threads): works with every cache mode. ``native`` needs ``none`` or ``directsync``; ``io_uring`` a new kernel.
    iothreads (0): a thread for the disk pays off with several busy disks; a guest with one CPU gains little and
        costs one more thread.
    network (lab): the lab's bridge, which containers hang on too. ``network:NAME`` is one of libvirt's,
        ``bridge:NAME`` a bridge of the host, ``user`` QEMU's own in user mode (slow), ``none`` none.
    network_model (virtio): the paravirtual card. ``e1000`` is what an image without drivers needs.
    machine (the driver's): q35 for QEMU, whose devices on the root bus take an emulated CPU less time to find
        than those of pc.
    firmware (none): a direct guest needs none. A full guest has ``bios`` (SeaBIOS, the faster) or ``ovmf`` (UEFI).
    virtiofs (none): a directory of the host as the guest's tag ``host``. It needs shared memory, which changes how the
        guest's memory is counted, and a daemon for each guest.
    """

    guest: Literal["direct", "full"] = "direct"
    sockets: int = 0
    cores: int = 0
    threads: int = 0
    pin: tuple[str, ...] = ()
    cpu: Cpu = "default"
    huge_pages: bool = False
    balloon: Literal["none", "virtio"] = "none"
    free_page_reporting: bool = False
    disk_bus: Literal["virtio", "scsi", "sata"] = "virtio"
    cache: Cache = "writeback"
    io: Io = "threads"
    iothreads: int = 0
    network: str = "lab"
    network_model: Literal["virtio", "e1000"] = "virtio"
    machine: str = ""
    firmware: Literal["none", "bios", "ovmf"] = "none"
    virtiofs: Path | None = None

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    def faults(self) -> list[tuple[str, str]]:
        """What does not go together, as pairs of key and reason."""
        rules = {
            "io": (
                self.io == "native" and self.cache not in _DIRECT_CACHES,
                f"native needs cache {' or '.join(_DIRECT_CACHES)}, not {self.cache}",
            ),
            "free_page_reporting": (self.free_page_reporting and self.balloon == "none", 'needs balloon = "virtio"'),
            "firmware": (
                (self.guest == "full") == (self.firmware == "none"),
                "a full guest needs bios or ovmf" if self.guest == "full" else "a direct guest has none",
            ),
            "disk_bus": (
                self.guest == "direct" and self.disk_bus != "virtio",
                'a direct guest has drivers for virtio only; guest = "full"',
            ),
            "network_model": (
                self.guest == "direct" and self.network_model != "virtio",
                'a direct guest has drivers for virtio only; guest = "full"',
            ),
            "network": (not _is_network(self.network), "lab, user, none, network:NAME or bridge:NAME"),
            "virtiofs": (self.virtiofs is not None and not self.virtiofs.is_absolute(), "must be an absolute path"),
            "iothreads": (not 0 <= self.iothreads <= 64, "from 0 to 64"),
            "sockets": (min(self.sockets, self.cores, self.threads) < 0, "not below 0"),
        }
        return [(key, reason) for key, (wrong, reason) in rules.items() if wrong]

    def topology(self, cpus: int) -> Topology | None:
        """How ``cpus`` are arranged; ``None`` where there is but one and nothing was asked.

        Raises:
            OptionsError: what was asked for does not multiply to ``cpus``.
        """
        if cpus == 1 and not (self.sockets or self.cores or self.threads):
            return None
        sockets, threads = self.sockets or 1, self.threads or 1
        cores = self.cores or max(1, cpus // (sockets * threads))
        if sockets * cores * threads != cpus:
            told = f"{sockets} sockets of {cores} cores of {threads} threads are not limits.cpus = {cpus}"
            raise OptionsError([("cores", told)])
        return Topology(sockets, cores, threads)


@dataclass(frozen=True)
class Topology:
    """Sockets, cores in each, threads in each core."""

    sockets: int
    cores: int
    threads: int


@dataclass(frozen=True)
class Unsupported:
    """Which options a hypervisor has nothing for; anything but their defaults is refused."""

    names: tuple[str, ...] = ()

    def faults(self, options: DomainOptions) -> list[tuple[str, str]]:
        """The options that were set in vain, as pairs of key and reason."""
        return [(name, "this driver has no such option") for name in self.names
                if getattr(options, name) != getattr(DEFAULTS, name)]  # fmt: skip


DEFAULTS: Final = DomainOptions()
NOTHING: Final = Unsupported()


def parse_options(table: Mapping[str, object]) -> DomainOptions:
    """Return the options that ``table`` (of a suite) sets, the others as they are by default.

    Raises:
        OptionsError: one is unknown or has a bad value, or two contradict each other; each is listed by its key.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        options = TypeAdapter(DomainOptions).validate_python(table)
    except ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        raise OptionsError(faults) from error
    if faults := options.faults():
        raise OptionsError(faults)
    return options


def _is_network(text: str) -> bool:
    kind, separator, name = text.partition(":")
    return text in {"lab", "user", "none"} or (kind in {"network", "bridge"} and bool(separator and name))
