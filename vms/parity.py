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
        _entry(platform, options),
        f"No limit on processes is set inside the virtual server, and {_room(options)}.",
        "The payload is root in a machine of its own: no system call filter, no dropped capabilities, writable /sys.",
    ]
    if emulated and platform.is_qemu:
        sentences.append("The virtual server's CPU is emulated in software: its speed says nothing about hardware.")
    elif emulated:
        sentences.append("Xen itself runs in a virtual machine here: its guests' speed says nothing about hardware.")
    return sentences


def _room(options: DomainOptions) -> str:
    if options.guest == "image":
        return "its disk has limits.disk more than the image's, if that grows its file system"
    if options.root == "virtiofs":
        return "what it writes may fill half of its memory, whatever limits.disk says"
    return f"its disk has room for {ROOM_BYTES >> 30} GiB"


def _entry(platform: Platform, options: DomainOptions) -> str:
    if options.image is not None:
        return (
            f"It is a whole server of the user's, {options.image}: the programs that the workload uses, and all else "
            f"but its payload, are that image's. It starts from firmware ({options.firmware}) and ends with cloud-init."
        )
    if options.guest == "full":
        return f"It is a whole server: firmware ({options.firmware}), boot loader, systemd and its services."
    firmware = "by a firmware that does nothing else (qboot)" if platform.is_qemu else "without firmware"
    return f"Its kernel is entered {firmware}, without a boot loader, and without randomising its address."


def _cache(platform: Platform, options: DomainOptions) -> str:
    if not platform.is_qemu:
        return "The virtual server's disk is served by a QEMU in dom0, with a cache of Xen's choice."
    if options.root == "virtiofs":
        return (
            "The virtual server has no disk: its root is the very directory of the image, which a daemon of the host "
            "(virtiofsd) shows it read-only; what it writes stays in its memory and never reaches a device."
        )
    if options.cache in {"none", "directsync"}:
        return f"The virtual server's disk passes the host's page cache by (cache={options.cache})."
    return (
        f"The virtual server's disk is cached twice, by its own kernel and by the host's (cache={options.cache}): "
        "direct input and output passes the first and may still be served from the host's memory."
    )
