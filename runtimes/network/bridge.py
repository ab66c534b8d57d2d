"""The bridge that containers hang on: which name and subnet, made on first use, removed when unused.

It is known again by its MAC, which it is born with. What must be undone with it (forwarding that was off) stands in
its alias: there as long as the bridge is, one for each network namespace, gone with the machine.
"""

from __future__ import annotations

import errno
import os

from bench.errors import HostError
from runtimes.engine import files, text
from runtimes.network import links, maps
from runtimes.network.lease import number_of, text_of
from runtimes.network.netlink import Netlink

NAME = "isomark"
"""Bridges are called isomark0, isomark1, …: one for each state directory in use."""
_MAC_PREFIX = bytes((0x02, 0x16))
"""Locally administered; containers have 02:15."""
_FORWARDING_WAS_OFF = "isomark: net.ipv4.ip_forward was 0"
_FORWARD = "net/ipv4/ip_forward"
_MOST_BRIDGES = 100


class Bridge:
    """A bridge on record: ``id`` is the end of its MAC, ``network`` its subnet's first address as a number.

    ``index`` and ``mtu`` (bytes) are known once it is there.
    """

    __slots__ = ("id", "index", "mtu", "name", "network", "prefix_length")

    def __init__(self, name: str, identity: str, network: int, prefix_length: int) -> None:
        self.name = name
        self.id = identity
        self.network = network
        self.prefix_length = prefix_length
        self.index = 0
        self.mtu = 0

    @property
    def gateway(self) -> int:
        """The bridge's own address: the first of the subnet."""
        return self.network + 1

    @property
    def group(self) -> int:
        """The device group of its ports: nobody else's, as it is random."""
        return int(self.id, 16)

    @property
    def mac(self) -> bytes:
        """Its MAC address."""
        return _MAC_PREFIX + bytes.fromhex(self.id)

    @property
    def subnet(self) -> str:
        """As nft and people write it."""
        return f"{text_of(self.network)}/{self.prefix_length}"

    def is_on(self, link: links.Link | None) -> bool:
        """Whether ``link`` is this very bridge and not another of its name."""
        return link is not None and link.kind == "bridge" and link.mac == self.mac


def load(state: str) -> Bridge | None:
    """The bridge on record in ``state``; it need not be there."""
    record = files.read_json(f"{state}/network/bridge")
    if record is None:
        return None
    return Bridge(record["name"], record["id"], number_of(record["network"]), record["prefix_length"])


def ensure(state: str, routes: Netlink, filters: Netlink) -> tuple[Bridge, bool]:
    """The bridge with its address, its table and forwarding, made or mended where they are missing.

    Call with the pool locked.

    Returns:
        The bridge, and whether the table is new and knows no published port yet.

    Raises:
        HostError: no free subnet or name, or the host refuses.
    """
    bridge = load(state)
    link = links.find(routes, bridge.name) if bridge is not None else None
    if bridge is None or link is None or not bridge.is_on(link):
        bridge, link = _create(state, bridge, routes)
        maps.delete_table(filters, bridge.name)  # of a bridge that somebody deleted: it may be of another subnet
    bridge.index, bridge.mtu = link.index, link.mtu
    if read_sysctl(_FORWARD) == "0":  # it may have been turned off meanwhile
        links.note(routes, bridge.name, _FORWARDING_WAS_OFF)
        write_sysctl(_FORWARD, "1")
    is_new = not maps.has_table(filters, bridge.name)
    if is_new:
        from runtimes.network import firewall  # rarely needed

        firewall.make(bridge.name, bridge.subnet)
    if not link.is_up:  # the last step of making one: whoever was killed before it leaves the rest to the next
        links.add_address(routes, bridge.index, bridge.gateway, bridge.prefix_length)
        write_sysctl(f"net/ipv4/conf/{bridge.name}/route_localnet", "1")
        if os.path.exists(f"/proc/sys/net/ipv6/conf/{bridge.name}"):
            write_sysctl(f"net/ipv6/conf/{bridge.name}/disable_ipv6", "1")
        links.bring_up(routes, bridge.index)
    return bridge, is_new


def _create(state: str, former: Bridge | None, routes: Netlink) -> tuple[Bridge, links.Link]:
    from runtimes.network import settings  # rarely needed

    wanted = settings.read(f"{state}/network/settings")
    network, prefix_length = settings.choose(
        wanted, (former.network, former.prefix_length) if former is not None else None, routes
    )
    identity = former.id if former is not None else os.urandom(4).hex()
    names = [wanted.bridge] if wanted.bridge else [f"{NAME}{number}" for number in range(_MOST_BRIDGES)]
    for name in names:
        bridge = Bridge(name, identity, network, prefix_length)
        if links.find(routes, name) is not None:
            continue
        record = {"name": name, "id": identity, "network": text_of(network), "prefix_length": prefix_length}
        files.write_whole(f"{state}/network/bridge", text.dumps(record).encode())
        try:
            links.add_bridge(routes, name, mac=bridge.mac, mtu=_mtu(routes))
        except FileExistsError:  # another state directory was quicker
            continue
        link = links.find(routes, name)
        if link is not None:
            return bridge, link
    raise HostError(
        f"no bridge can be made: {names[0]} and all other names for it are taken",
        hint="isomark clean removes what dead processes left; ip link show type bridge lists the rest",
    )


def remove(state: str, routes: Netlink, filters: Netlink) -> None:
    """Remove the bridge and all that was made with it; idempotent. Call with the pool locked and no lease in use."""
    files.sweep_drafts(f"{state}/network")
    files.sweep_drafts(f"{state}/owned", "net=")
    bridge = load(state)
    if bridge is None:
        return
    link = links.find(routes, bridge.name)
    if link is not None and not bridge.is_on(link):
        return  # somebody else's, of the same name
    if link is not None and link.alias == _FORWARDING_WAS_OFF:
        _give_back_forwarding(bridge, routes, filters)
    maps.delete_table(filters, bridge.name)
    links.delete_group(routes, bridge.group)  # interfaces of containers that ended, whose namespaces somebody holds
    links.delete(routes, bridge.name)


def _give_back_forwarding(bridge: Bridge, routes: Netlink, filters: Netlink) -> None:
    """Turn forwarding off again, unless others have come to rely on it; another bridge of ours inherits the duty."""
    for link in links.all_links(routes):
        if link.kind == "bridge" and link.name != bridge.name and link.mac.startswith(_MAC_PREFIX):
            links.note(routes, link.name, _FORWARDING_WAS_OFF)
            return
    from runtimes.network import firewall

    if not firewall.others_translate(filters, NAME):
        write_sysctl(_FORWARD, "0")


def _mtu(routes: Netlink) -> int:
    """Bytes of a packet on the host's way out; Ethernet's where there is none."""
    devices = {route.device for route in links.routes_of(routes) if route.prefix_length == 0}
    return min((link.mtu for link in links.all_links(routes) if link.index in devices), default=1500)


def read_sysctl(name: str) -> str:
    """The value of a sysctl, its name with slashes."""
    with open(f"/proc/sys/{name}", encoding="utf-8") as file:
        return file.read().strip()


def write_sysctl(name: str, value: str) -> None:
    """Set a sysctl.

    Raises:
        HostError: the host refuses (a container without its own /proc/sys).
    """
    try:
        with open(f"/proc/sys/{name}", "w", encoding="utf-8") as file:
            file.write(value)
    except OSError as error:
        if error.errno not in {errno.EROFS, errno.EACCES, errno.EPERM}:
            raise
        raise HostError(
            f"cannot set {name.replace('/', '.')} to {value}: {error.strerror}",
            hint=f"set it on the host: sysctl -w {name.replace('/', '.')}={value}; or use --network none or host",
        ) from error
