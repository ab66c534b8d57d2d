"""Granting and ending leases: what the pool, the ports, the bridge and the firewall have to do with each other."""

from __future__ import annotations

import errno

from bench.errors import HostError
from runtimes.network import bridge as bridges
from runtimes.network import links, maps, netlink, pool, reserve
from runtimes.network.lease import UDP, Lease, text_of
from runtimes.network.netlink import Netlink
from runtimes.network.pool import Pool, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtimes.engine.process import Process
    from runtimes.network.bridge import Bridge
    from runtimes.network.lease import Port


def refused(error: OSError) -> HostError:
    """What to tell when the kernel refuses a step of a container's network."""
    hints = {
        errno.EPERM: "only root has a bridge: --network none, or host",
        errno.EMFILE: "raise the limit of descriptors: ulimit -n",
        errno.ENOSPC: "df and df -i show what is full",
    }
    said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return HostError(f"cannot change the container's network: {said}", hint=hints.get(error.errno or 0, ""))


class Grants:
    """The locked pool of a state directory with the sockets to act on it; a context manager."""

    __slots__ = ("filters", "leases", "routes")

    def __init__(self, state: str) -> None:
        """Wait for the lock.

        Raises:
            HostError: the state directory cannot be written.
        """
        self.leases = Pool(state)
        try:
            self.filters = Netlink(netlink.NETLINK_NETFILTER)
            self.routes = Netlink(netlink.NETLINK_ROUTE)
        except OSError as error:
            raise refused(error) from error

    def __enter__(self) -> Grants:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        self.leases.close()  # first: closing the other waits until the kernel forgot what was deleted, 15 ms
        self.routes.close()
        self.filters.close()
        if isinstance(error, OSError):
            raise refused(error) from error

    def grant(self, container: str, ports: Sequence[Port], owner: Process) -> Lease:
        """A new lease, recorded before anything of it exists, with its ports leading to it.

        Raises:
            HostError: no free address, or a port is taken.
        """
        if not len(self.leases):
            self.leases.write_idle()  # before there is a bridge
        bridge, is_new = bridges.ensure(self.leases.state, self.routes, self.filters)
        if is_new:
            self._publish_again(bridge)
        lease = self._lease(container, bridge, self._free_address(bridge))
        try:
            lease.ports, held = reserve.take(ports)
        except HostError:
            for port in ports:
                self._clear(lease, port)  # the better error, if it is a container's
            raise
        reserve.hold(self.leases.state, container, held)
        try:
            record = self.leases.write(container, lease.address, lease.ports, owner)
            try:
                self._publish(lease)
            except BaseException:
                self.leases.drop(record)
                raise
        except BaseException:
            reserve.give_back(self.leases.state, container)
            raise
        self.leases.forget_idle()
        return lease

    def end(self, ended: Sequence[Record]) -> str | None:
        """Take back ports and addresses; if nobody alive is left, the bridge is owned as idle before the last goes.

        Returns:
            The idle bridge's token (``Pool.is_idle_since``); ``None``: it is in use.
        """
        if not ended:
            return None
        token = None
        for record in ended:
            self._take_back(record)
        gone = {record.name for record in ended}
        if not any(self.is_alive(record) for record in self.leases.records() if record.name not in gone):
            token = self.leases.write_idle()
        for record in ended:
            self.leases.drop(record)
        return token

    def retire(self) -> bool:
        """End what is dead and remove the bridge if no lease is left; whether it is gone."""
        self.end([record for record in self.leases.records() if not self.is_alive(record)])
        if len(self.leases):
            return False
        bridges.remove(self.leases.state, self.routes, self.filters)
        self.leases.forget_idle()
        return True

    def is_watched(self, record: Record) -> bool:
        """Whether the lease's owner lives."""
        owner = pool.read(record)[0]
        return owner is not None and owner.alive()

    def is_alive(self, record: Record) -> bool:
        """Whether the owner lives, or the container has its interface yet and so may use its address."""
        return self.is_watched(record) or links.find(self.routes, record.interface) is not None

    def _lease(self, container: str, bridge: Bridge, address: str) -> Lease:
        return Lease(
            state=self.leases.state,
            container=container,
            address=address,
            prefix_length=bridge.prefix_length,
            gateway=text_of(bridge.gateway),
            bridge=bridge.name,
            bridge_index=bridge.index,
            group=bridge.group,
            mtu=bridge.mtu,
        )

    def _free_address(self, bridge: Bridge) -> str:
        address = self.leases.free_address(bridge)
        if address is None:
            self.end([record for record in self.leases.records() if not self.is_alive(record)])
            address = self.leases.free_address(bridge)
        if address is None:
            raise HostError(
                f"all {len(self.leases)} addresses of {bridge.subnet} are in use",
                hint="stop containers, or write a larger subnet to network/settings in the state directory",
            )
        return address

    def _publish(self, lease: Lease) -> None:
        """Let the ports lead to the container; what dead containers still hold of them is taken from them.

        Raises:
            HostError: a living container holds one.
        """
        if not lease.ports:
            return
        try:
            maps.add(self.filters, lease.bridge, lease.ports, lease.address)
        except OSError as error:
            if error.errno not in {errno.EBUSY, errno.EEXIST}:
                raise
            for port in lease.ports:
                self._clear(lease, port)
            maps.add(self.filters, lease.bridge, lease.ports, lease.address)

    def _clear(self, lease: Lease, port: Port) -> None:
        address = maps.destination(self.filters, lease.bridge, port)
        if address is None or address == lease.address:
            return
        holder = self.leases.of_address(address)
        if holder is None:  # a lease file that was lost with the power
            maps.discard(self.filters, lease.bridge, [port], address)
        elif self.is_alive(holder):
            raise reserve.taken(port, f"container {holder.container[:12]}")
        else:
            self.end([holder])

    def _publish_again(self, bridge: Bridge) -> None:
        """Fill a new table with what containers hold: somebody flushed the rules (``systemctl restart nftables``)."""
        for record in self.leases.records():
            ports = pool.read(record)[1]
            if ports and self.is_alive(record):
                maps.add(self.filters, bridge.name, ports, record.address)

    def _take_back(self, record: Record) -> None:
        ports = pool.read(record)[1]
        if ports and (bridge := bridges.load(self.leases.state)) is not None:
            maps.discard(self.filters, bridge.name, ports, record.address)
            if any(port.protocol == UDP for port in ports):
                from runtimes.network import conntrack  # rarely needed

                conntrack.forget(self.filters, record.address)
        reserve.give_back(self.leases.state, record.container)
