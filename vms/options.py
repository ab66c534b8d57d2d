"""What may be chosen about a virtual server beside its limits, and what a careful operator would choose.

In a suite these are the table ``[options.DRIVER]``; ``parse_options`` checks one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from bench.errors import OptionsError

Cpu = Literal["default", "maximum", "host-passthrough", "host-model"]
Cache = Literal["none", "writeback", "writethrough", "directsync", "unsafe"]
Io = Literal["threads", "native", "io_uring"]
_BUSES: Final = ("virtio", "scsi", "sata")
_DIRECT_CACHES: Final = ("none", "directsync")
_ROOT: Final = Path("/")
_CPUS: Final = re.compile(r"\^?\d+(-\d+)?(,\^?\d+(-\d+)?)*")


@dataclass(frozen=True)
class DomainOptions:
    """Each option with its default and the reason for that.

    guest (direct): ``direct`` enters the kernel at once with our init, the least a virtual server can be. ``full``
        is a server image with boot loader and systemd, which takes ten times as long to start: a question of its own.
        ``image`` is a cloud image of the user's, whose cloud-init gets the workload from a NoCloud seed: not the same
        bits as every other driver's, but those that are going to be used.
    sockets, cores, threads (0): 0 is one socket with a core for each CPU granted. A guest that sees a socket for each
        CPU, as hypervisors default to, believes that they share no cache and schedules for a machine that is not there.
        An emulated CPU shows its guest one thread in each core, whatever is asked, so ``threads`` is refused there.
    pin (none): for each virtual CPU the host's CPUs that it may run on, like ``["2", "3-4"]``. Containers get a number
        of CPUs and no particular ones; a pinned guest would be compared with an unpinned container.
    cpu (default): the host's own for hardware acceleration (a named model hides instructions that the container has);
        all that can be emulated for TCG. Xen decides by itself.
    huge_pages (false): faster under memory load, but they must be reserved on the host beforehand and are then lost to
        all others, and the guest holds all of its memory from its start, used or not. They need no hugetlbfs.
    balloon (none): a balloon moves memory between host and guest at moments of its own, which blurs the reading of
        what an idle guest costs. ``virtio`` adds one, for libvirt's statistics.
    free_page_reporting (false): the guest gives freed pages back to the host; needs the balloon, and costs both
        of them time. For density that is right, for a first comparison it is one more moving part.
    disk_bus (virtio): the paravirtual disk. ``scsi`` (virtio too, slower by a layer) is for full guests, ``sata`` for
        images of the user's: the kernel of our own guests, made for clouds, has no driver for an emulated board's disk.
    cache (writeback): as a container's files do, reads go through the host's page cache and writes reach the device
        at fsync. ``none`` makes every guest read its programs from the device at each boot.
    io (threads): works with every cache mode. ``native`` needs ``none`` or ``directsync``; ``io_uring`` a new kernel.
    iothreads (0): a thread for the disk (1) pays off with several busy disks; a guest with one CPU gains little and
        costs one more thread.
    network (lab): the lab's bridge, which containers hang on too. ``network:NAME`` is one of libvirt's,
        ``bridge:NAME`` a bridge of the host, ``user`` QEMU's own in user mode (slow), ``none`` none.
    network_model (virtio): the paravirtual card. ``e1000`` is what an image of the user's without drivers needs.
    machine (the driver's): q35 for QEMU, whose devices on the root bus take an emulated CPU less time to find
        than those of pc: that was ready after 1.14 times as long. microvm, which has neither PCI nor a BIOS, was ready
        after 0.88 times as long and is refused: about one boot in six hung, because without the clocks of a board an
        emulated CPU has nothing to measure its own by, and operators run disks and cards of PCI.
    image (none): for ``guest = "image"`` the absolute path of its disk, qcow2 or raw, with cloud-init in it. It is
        looked at, copied under the name of its content, and never written to.
    firmware (none): a direct guest has qboot, the least that a PC starts with (``vms/qemu.py``). Any other has ``bios``
        (SeaBIOS, the faster) or ``ovmf`` (UEFI, without Secure Boot).
    virtiofs (none): a directory of the host as the guest's tag ``host``. It needs shared memory, which changes how the
        guest's memory is counted, and a daemon for each guest.
    root (disk): what a direct guest's root is. Virtual servers have disks. ``virtiofs`` makes none: the guest sees the
        very directory that containers run from, read-only, and keeps in its memory what it writes. It needs what
        ``virtiofs`` needs, and each first look at a file is answered by the host's daemon. It was ready after 0.98
        times as long (by the least of 9, 1.03): no difference.
    console (serial): the serial port speaks from the kernel's first line, and after a panic. ``virtio`` leaves the port
        out; it speaks only once its module is loaded, so that the moment of the first kernel line is missing. It was
        ready after 0.99 times as long (by the least of 9, 1.05): its module costs what the port does. These ratios
        are medians of 9 emulated starts in turns (tests/benchmarks/vm_start.py); the same guest twice differed by 1.05.
    """

    guest: Literal["direct", "full", "image"] = "direct"
    image: Path | None = None
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
    root: Literal["disk", "virtiofs"] = "disk"
    console: Literal["serial", "virtio"] = "serial"

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
                (self.guest == "direct") != (self.firmware == "none"),
                "a direct guest has none" if self.guest == "direct" else f"guest {self.guest} needs bios or ovmf",
            ),
            "image": (
                (self.guest == "image") != (self.image is not None) or not (self.image or _ROOT).is_absolute(),
                'guest = "image" needs one, by its absolute path' if self.guest == "image" else 'needs guest = "image"',
            ),
            "disk_bus": (
                self.disk_bus not in {"direct": ("virtio",), "full": ("virtio", "scsi")}.get(self.guest, _BUSES),
                f'the kernel of a {self.guest} guest, which is for clouds, has no driver for it; guest = "image"',
            ),
            "network_model": (
                self.guest != "image" and self.network_model != "virtio",
                f'the kernel of a {self.guest} guest, which is for clouds, has no driver for it; guest = "image"',
            ),
            "network": (not _is_network(self.network), "lab, user, none, network:NAME or bridge:NAME"),
            "virtiofs": (self.virtiofs is not None and not self.virtiofs.is_absolute(), "must be an absolute path"),
            "root": (self.guest != "direct" and self.root != "disk", "only a direct guest starts without a disk"),
            "console": (self.guest != "direct" and self.console != "serial", "only a direct guest does without a port"),
            "pin": (
                not all(map(_CPUS.fullmatch, self.pin)),
                'CPUs of the host for each virtual one, like ["2", "3-4"]',
            ),
            "iothreads": (
                self.iothreads not in ({0} if self.disk_bus == "sata" or self.root != "disk" else {0, 1}),
                "0, or 1 where there is a disk on virtio or scsi",
            ),
            "cache": (
                self.root != "disk" and (self.cache, self.io) != (DEFAULTS.cache, DEFAULTS.io),
                'needs root = "disk", as io does',
            ),
            "sockets": (min(self.sockets, self.cores, self.threads) < 0, "not below 0"),
        }
        return [(key, reason) for key, (wrong, reason) in rules.items() if wrong]

    @property
    def shares_memory(self) -> bool:
        """Whether a daemon of the host maps the guest's memory."""
        return self.virtiofs is not None or self.root == "virtiofs"

    def pinned(self, cpus: int) -> tuple[str, ...]:
        """Where each of ``cpus`` may run; nothing if that was not asked.

        Raises:
            OptionsError: it was asked for another number of them.
        """
        if self.pin and len(self.pin) != cpus:
            raise OptionsError([("pin", f"{len(self.pin)} virtual CPUs are not limits.cpus = {cpus}")])
        return self.pin

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
    """Which options a hypervisor has nothing for; only their defaults are taken. ``values`` are single ones."""

    names: tuple[str, ...] = ()
    values: tuple[tuple[str, object], ...] = ()

    def faults(self, options: DomainOptions) -> list[tuple[str, str]]:
        """The options that were set in vain, as pairs of key and reason."""
        vain = [(name, "this driver has no such option") for name in self.names
                if getattr(options, name) != getattr(DEFAULTS, name)]  # fmt: skip
        return vain + [(name, f"this driver has no {value}") for name, value in self.values
                       if getattr(options, name) == value]  # fmt: skip


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
