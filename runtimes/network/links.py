"""Bridges, veth pairs, addresses and routes through rtnetlink(7); nothing that remembers."""

from __future__ import annotations

import errno
from struct import Struct

from runtimes.network import netlink
from runtimes.network.netlink import Message, Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtimes.network.lease import Lease

# linux/rtnetlink.h
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_GETLINK = 18
_RTM_SETLINK = 19
_RTM_NEWADDR = 20
_RTM_GETROUTE = 26
_RTA_DST = 1
_RTA_OIF = 4
# linux/if_link.h, linux/veth.h, linux/if_addr.h
_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_MASTER = 10
_IFLA_LINKINFO = 18
_IFLA_IFALIAS = 20
_IFLA_GROUP = 27
_IFLA_NET_NS_FD = 28
_IFLA_EXT_MASK = 29
_RTEXT_FILTER_SKIP_STATS = 8
_IFLA_INFO_KIND = 1
_IFLA_INFO_DATA = 2
_IFLA_INFO_SLAVE_KIND = 4
_IFLA_INFO_SLAVE_DATA = 5
_IFLA_BRPORT_MODE = 4
_IFLA_BR_FORWARD_DELAY = 1
_IFLA_BR_STP_STATE = 5
_VETH_INFO_PEER = 1
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_BROADCAST = 4
_IFF_UP = 1

_LINK = Struct("=BxHiII")
"""struct ifinfomsg: family, device type, index, flags, which flags change."""
_ADDRESS = Struct("=BBBBI")
"""struct ifaddrmsg: family, prefix length, flags, scope, index."""
_ROUTE = Struct("=BBBBBBBBI")
"""struct rtmsg: family, destination's and source's length, tos, table, protocol, scope, type, flags."""
_AF_INET = 2


class Link:
    """A device as the kernel tells it; ``alias`` is a note that somebody left (ip-link(8), "alias")."""

    __slots__ = ("alias", "index", "is_up", "kind", "mac", "mtu", "name")

    def __init__(self, payload: bytes) -> None:
        _, _, self.index, flags, _ = _LINK.unpack_from(payload)
        self.is_up = bool(flags & _IFF_UP)
        found = netlink.attributes(payload, _LINK.size)
        self.name = netlink.read_text(found[_IFLA_IFNAME])
        self.mac = found.get(_IFLA_ADDRESS, b"")
        self.alias = netlink.read_text(found.get(_IFLA_IFALIAS, b""))
        self.mtu = netlink.read_u32(found[_IFLA_MTU])
        information = netlink.attributes(found.get(_IFLA_LINKINFO, b""))
        self.kind = netlink.read_text(information.get(_IFLA_INFO_KIND, b""))


def find(routes: Netlink, name: str) -> Link | None:
    """The device called ``name``."""
    mask = netlink.u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
    return _one(routes, _link() + mask + netlink.text(_IFLA_IFNAME, name))


def all_links(routes: Netlink) -> list[Link]:
    """Every device of this network namespace."""
    return [Link(payload) for payload in routes.dump(_RTM_GETLINK, _link())]


def add_bridge(routes: Netlink, name: str, *, mac: bytes, mtu: int) -> None:
    """Make a bridge that forwards at once (no spanning tree), with a MAC that its ports do not change.

    Raises:
        FileExistsError: there is a device of that name.
    """
    data = (netlink.u32(_IFLA_BR_FORWARD_DELAY, 0), netlink.u32(_IFLA_BR_STP_STATE, 0))
    information = (netlink.text(_IFLA_INFO_KIND, "bridge"), netlink.nested(_IFLA_INFO_DATA, *data))
    body = (
        _link()
        + netlink.text(_IFLA_IFNAME, name)
        + netlink.attribute(_IFLA_ADDRESS, mac)
        + netlink.u32(_IFLA_MTU, mtu)
        + netlink.nested(_IFLA_LINKINFO, *information)
    )
    routes.request(Message(_RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body))


def note(routes: Netlink, name: str, alias: str) -> None:
    """Replace the note of device ``name``; at most 255 bytes."""
    routes.request(
        Message(_RTM_SETLINK, 0, _link() + netlink.text(_IFLA_IFNAME, name) + netlink.text(_IFLA_IFALIAS, alias))
    )


def add_veth(routes: Netlink, lease: Lease, *, netns_fd: int, peer: str) -> None:
    """Make the lease's interface, up and on its bridge, and ``peer`` with the lease's MAC in another namespace.

    Raises:
        FileExistsError: either name is taken.
    """
    inside = (
        _link()
        + netlink.text(_IFLA_IFNAME, peer)
        + netlink.attribute(_IFLA_ADDRESS, bytes.fromhex(lease.mac.replace(":", "")))
        + netlink.u32(_IFLA_MTU, lease.mtu)
        + netlink.u32(_IFLA_NET_NS_FD, netns_fd)
    )
    data = netlink.nested(_IFLA_INFO_DATA, netlink.attribute(_VETH_INFO_PEER, inside))
    outside = _link(flags=_IFF_UP) + netlink.text(_IFLA_IFNAME, lease.interface) + netlink.u32(_IFLA_MTU, lease.mtu)
    information = netlink.nested(_IFLA_LINKINFO, netlink.text(_IFLA_INFO_KIND, "veth"), data)
    belongs = netlink.u32(_IFLA_MASTER, lease.bridge_index) + netlink.u32(_IFLA_GROUP, lease.group)
    body = outside + belongs + information
    routes.request(Message(_RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body))


def reflect(routes: Netlink, name: str) -> None:
    """Let the bridge send frames back out of the port ``name`` they came from (hairpin mode)."""
    data = netlink.nested(_IFLA_INFO_SLAVE_DATA, netlink.attribute(_IFLA_BRPORT_MODE, b"\1"))
    information = netlink.nested(_IFLA_LINKINFO, netlink.text(_IFLA_INFO_SLAVE_KIND, "bridge"), data)
    routes.request(Message(_RTM_NEWLINK, 0, _link() + netlink.text(_IFLA_IFNAME, name) + information))


def bring_up(routes: Netlink, index: int) -> None:
    """Set a device up."""
    routes.request(Message(_RTM_SETLINK, 0, _link(index=index, flags=_IFF_UP)))


def add_address(routes: Netlink, index: int, address: int, prefix_length: int) -> None:
    """Give a device its IPv4 address; one it has already is no error."""
    packed = address.to_bytes(4, "big")
    broadcast = address | (1 << 32 - prefix_length) - 1
    body = (
        _ADDRESS.pack(_AF_INET, prefix_length, 0, 0, index)
        + netlink.attribute(_IFA_LOCAL, packed)
        + netlink.attribute(_IFA_ADDRESS, packed)
        + netlink.attribute(_IFA_BROADCAST, broadcast.to_bytes(4, "big"))
    )
    try:
        routes.request(Message(_RTM_NEWADDR, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body))
    except FileExistsError:
        return


def delete(routes: Netlink, name: str) -> bool:
    """Remove a device and what hangs on it (a veth's peer); whether there was one."""
    return _delete(routes, netlink.text(_IFLA_IFNAME, name))


def delete_group(routes: Netlink, group: int) -> bool:
    """Remove all devices of a group at once, in the time of one; whether there were any."""
    return _delete(routes, netlink.u32(_IFLA_GROUP, group))


def _delete(routes: Netlink, which: bytes) -> bool:
    try:
        routes.request(Message(_RTM_DELLINK, 0, _link() + which))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return False
    return True


class Route:
    """Where the host sends packets for ``destination``/``prefix_length``; ``device`` is an index or 0."""

    __slots__ = ("destination", "device", "prefix_length")

    def __init__(self, payload: bytes) -> None:
        self.prefix_length: int = _ROUTE.unpack_from(payload)[1]
        found = netlink.attributes(payload, _ROUTE.size)
        self.destination = int.from_bytes(found.get(_RTA_DST, bytes(4)), "big")
        self.device = netlink.read_u32(found[_RTA_OIF]) if _RTA_OIF in found else 0

    def meets(self, network: int, prefix_length: int) -> bool:
        """Whether an address belongs to both; a default route meets nothing."""
        shorter = min(prefix_length, self.prefix_length)
        return shorter > 0 and (self.destination ^ network) >> 32 - shorter == 0


def routes_of(routes: Netlink) -> list[Route]:
    """Every IPv4 route of every table."""
    return [Route(payload) for payload in routes.dump(_RTM_GETROUTE, _ROUTE.pack(_AF_INET, *[0] * 8))]


def _link(*, index: int = 0, flags: int = 0) -> bytes:
    return _LINK.pack(0, 0, index, flags, flags)


def _one(routes: Netlink, body: bytes) -> Link | None:
    try:
        for payload in routes.dump(_RTM_GETLINK, body, flags=0):
            return Link(payload)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    return None
