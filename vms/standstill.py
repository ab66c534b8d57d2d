"""Why a guest that says nothing more says nothing: the hypervisor has stopped it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.errors import InstanceError
from vms.deadline import awaited

if TYPE_CHECKING:
    import libvirt


def standstill(domain: libvirt.virDomain, tail: Sequence[str]) -> InstanceError | None:
    """Return that ``domain``, whose console ended in ``tail``, waits for its disk; ``None`` if it does not.

    QEMU stops a guest whose disk's file cannot grow, until somebody makes room (libvirt, formatdomain, error_policy).
    """
    import libvirt

    try:
        if domain.state() != [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]:
            return None
        full = libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE in awaited("tell its disks' errors", domain.diskErrors).values()
    except InstanceError as error:
        return error
    except libvirt.libvirtError:  # it is gone, or nobody knows
        return None
    return InstanceError(
        f"the hypervisor stopped the guest: {'No space left for its disk' if full else 'its disk failed'}",
        hint="df -h on its host shows which file system is full" if full else "dmesg of its host may say more",
        tail=tail,
    )
