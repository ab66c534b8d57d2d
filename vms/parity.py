"""What a virtual server differs in from a process and a container, for the report."""

from __future__ import annotations

import platform as this_host

from vms.disk import ROOM_BYTES
from vms.domain import Platform
from vms.options import DomainOptions


def parity(platform: Platform, options: DomainOptions, kernel: str, *, emulated: bool) -> list[str]:
    """Return a sentence for each difference."""
    sentences = [
        f"The virtual server runs its own kernel, {kernel}; processes and containers run on {this_host.release()}.",
        "CPU mitigations in the virtual server are those its kernel chooses for the CPU that it sees.",
        _cache(platform, options),
        _entry(options),
        f"No limit on processes is set inside the virtual server, and its disk has room for {ROOM_BYTES >> 30} GiB.",
        "The payload is root in a machine of its own: no system call filter, no dropped capabilities, writable /sys.",
    ]
    if emulated and platform.is_qemu:
        sentences.append("The virtual server's CPU is emulated in software: its speed says nothing about hardware.")
    elif emulated:
        sentences.append("Xen itself runs in a virtual machine here: its guests' speed says nothing about hardware.")
    return sentences


def _entry(options: DomainOptions) -> str:
    if options.guest == "full":
        return f"It is a whole server: firmware ({options.firmware}), boot loader, systemd and its services."
    return "Its kernel is entered directly, without firmware or boot loader, and without randomising its address."


def _cache(platform: Platform, options: DomainOptions) -> str:
    if not platform.is_qemu:
        return "The virtual server's disk is served by a QEMU in dom0, with a cache of Xen's choice."
    if options.cache in {"none", "directsync"}:
        return f"The virtual server's disk passes the host's page cache by (cache={options.cache})."
    return (
        f"The virtual server's disk is cached twice, by its own kernel and by the host's (cache={options.cache}): "
        "direct input and output passes the first and may still be served from the host's memory."
    )
