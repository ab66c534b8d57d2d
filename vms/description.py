"""What a driver of virtual servers tells of itself, for the record and for who compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vms.connection import Connection, shown
from vms.domain import Platform
from vms.forms import disk_form
from vms.options import DEFAULTS, DomainOptions
from vms.parity import parity
from vms.qemu import FIRMWARE

_OF_XEN: Final = {"disk": "xen-blkfront, ext4, qcow2 overlay on raw, qdisk"}


def describe(
    platform: Platform,
    options: DomainOptions,
    connection: Connection,
    machine: str,
    inside: Mapping[str, str],
    *,
    emulated: bool,
    here: bool,
) -> dict[str, str]:
    """Return versions, machine, CPU and kernel; what differs from a container under ``parity``.

    ``machine`` is what libvirt makes of the platform's, ``inside`` what is told of kernel and image; ``here`` says
    whether domains are processes of this host.

    Raises:
        DriverUnavailable: libvirt does not answer.
    """
    libvirt_version, version = connection.versions()
    described = {
        "engine": f"libvirt {libvirt_version} / {platform.title} {version}",
        "accelerator": {"qemu": "TCG", "kvm": "KVM", "xen": "Xen"}[platform.domain_type],
        "emulated": "yes" if emulated else "no",
        "machine": machine,
        **inside,
        **(_of_qemu(platform, options) if platform.is_qemu else _OF_XEN),
    }
    changed = {name: str(value) for name, value in vars(options).items() if value != getattr(DEFAULTS, name)}
    changed.pop("image", None)  # whose digest tells it from others, wherever it lies
    if changed:
        described["options"] = ", ".join(f"{name} {value}" for name, value in changed.items())
    if not here:
        described["host"] = shown(connection.address, connection.address)
    described["parity"] = "\n".join(parity(platform, options, inside["guest kernel"], emulated=emulated))
    return described


def _of_qemu(platform: Platform, options: DomainOptions) -> dict[str, str]:
    default = "host-passthrough" if platform.domain_type == "kvm" else "max"
    return {
        "cpu": default if options.cpu == "default" else options.cpu,
        "disk": disk_form(options),
        "balloon": options.balloon,
        "firmware": FIRMWARE if options.guest == "direct" else options.firmware,
    }
