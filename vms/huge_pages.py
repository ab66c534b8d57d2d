"""Huge pages for a guest's memory: reserved on its host beforehand, by whoever runs that, and by nobody else."""

from __future__ import annotations

from bench.errors import DriverUnavailable
from bench.units import KIB
from vms.connection import Connection
from vms.domain import HUGE_PAGE_KIB

_WHOLE_HOST = -1
"""Rather than one NUMA node (virNodeGetFreePages)."""


def require_huge_pages(connection: Connection, memory_bytes: int) -> None:
    """Check that the host of ``connection`` has huge pages free for a guest of ``memory_bytes``.

    QEMU itself would only say that it cannot allocate memory.

    Raises:
        DriverUnavailable: it has too few, or libvirt does not tell.
    """
    import libvirt

    needed = -(-memory_bytes // (HUGE_PAGE_KIB * KIB))
    try:
        free = connection.open().getFreePages([HUGE_PAGE_KIB], _WHOLE_HOST, 1)[_WHOLE_HOST][HUGE_PAGE_KIB]
    except libvirt.libvirtError as error:
        raise DriverUnavailable(
            f"libvirt does not tell the huge pages of its host: {error}", hint="huge_pages = false needs none"
        ) from error
    if free < needed:
        raise DriverUnavailable(
            f"the guest needs {needed} huge pages of {HUGE_PAGE_KIB >> 10} MiB, and its host has {free} free",
            hint=f"on that host: sysctl -w vm.nr_hugepages=N reserves N in all, {needed} for each guest that runs",
        )
