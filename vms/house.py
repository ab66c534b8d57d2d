"""The memory of a hypervisor's host, as libvirt tells it, for domains whose memory is not this kernel's."""

from __future__ import annotations

from bench.abilities import House
from bench.units import KIB, MIB
from vms.connection import Connection, told


def read_house(connection: Connection, *, xen: bool) -> House:
    """Ask for the memory of the host at ``connection``: Xen's own, or what its Linux says of itself.

    Xen hands out whole pages and keeps no cache. Of a Linux what it caches counts as free, shared memory with it.

    Raises:
        DriverUnavailable, InstanceError: libvirt does not tell.
    """
    with told("libvirt does not tell its host's memory"):
        handle = connection.open()
        if xen:
            free = handle.getFreeMemory()
            return House(handle.getInfo()[1] * MIB - free, free)
        known = handle.getMemoryStats(-1)  # VIR_NODE_MEMORY_STATS_ALL_CELLS
    free = (known["free"] + known["buffers"] + known["cached"]) * KIB
    return House(known["total"] * KIB - free, free)
