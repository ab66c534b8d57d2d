"""Elements of nftables maps through nfnetlink: published ports come and go in 0.1 ms, without the nft program.

The table itself is made by ``firewall`` with nft; here only what changes with each container. Every call is one
transaction. Numbers from linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
from struct import Struct

from runtimes.network import netlink
from runtimes.network.lease import EVERYWHERE, TCP, UDP, Port, number_of, text_of
from runtimes.network.netlink import Message, Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ANY = "any"
"""Map of ports published on every address: protocol . port -> address . port."""
ONE = "one"
"""Map of ports published on one address: address . protocol . port -> address . port."""

_BATCH_BEGIN = 0x10
_BATCH_END = 0x11
_NFNL_SUBSYS_NFTABLES = 10
_NFT = _NFNL_SUBSYS_NFTABLES << 8
_NFT_MSG_GETTABLE = _NFT | 1
_NFT_MSG_DELTABLE = _NFT | 2
_NFT_MSG_GETCHAIN = _NFT | 4
_NFT_MSG_NEWSETELEM = _NFT | 12
_NFT_MSG_GETSETELEM = _NFT | 13
_NFT_MSG_DELSETELEM = _NFT | 14
_NFPROTO_IPV4 = 2
_NFTA_TABLE_NAME = 1
_NFTA_ELEMENTS_TABLE = 1
_NFTA_ELEMENTS_SET = 2
_NFTA_ELEMENTS = 3
_NFTA_LIST_ELEM = 1
_NFTA_ELEMENT_KEY = 1
_NFTA_ELEMENT_DATA = 2
_NFTA_DATA_VALUE = 1
_NFTA_CHAIN_TABLE = 1
_NFTA_CHAIN_NAME = 3
_NFTA_CHAIN_HOOK = 4
_NFTA_CHAIN_POLICY = 5
_NFTA_CHAIN_TYPE = 7
_NFTA_HOOK_HOOKNUM = 1

_FAMILY = Struct(">BBH")
"""struct nfgenmsg: family, version, resource id."""
_PROTOCOLS = {TCP: 6, UDP: 17}


def has_table(filters: Netlink, table: str) -> bool:
    """Whether the IPv4 table exists."""
    asked = _FAMILY.pack(_NFPROTO_IPV4, 0, 0) + netlink.text(_NFTA_TABLE_NAME, table)
    try:
        return any(True for _ in filters.dump(_NFT_MSG_GETTABLE, asked, flags=0))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False


def delete_table(filters: Netlink, table: str) -> None:
    """Remove the IPv4 table with all in it; a missing one is no error."""
    body = _FAMILY.pack(_NFPROTO_IPV4, 0, 0) + netlink.text(_NFTA_TABLE_NAME, table)
    try:
        _change(filters, [Message(_NFT_MSG_DELTABLE, 0, body)])
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def add(filters: Netlink, table: str, ports: Iterable[Port], address: str) -> None:
    """Let ``ports`` lead to ``address``: all or none; those that do already are no error.

    Raises:
        OSError: EBUSY, one leads elsewhere.
    """
    _change(filters, [_element(_NFT_MSG_NEWSETELEM, netlink.NLM_F_CREATE, table, port, address) for port in ports])


def discard(filters: Netlink, table: str, ports: Iterable[Port], address: str) -> None:
    """Take back those of ``ports`` that lead to ``address``, whatever became of the others or of the table."""
    for port in ports:
        if destination(filters, table, port) != address:
            continue
        try:
            _change(filters, [_element(_NFT_MSG_DELSETELEM, 0, table, port, None)])
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


def destination(filters: Netlink, table: str, port: Port) -> str | None:
    """The address that ``port`` leads to now."""
    try:
        for answer in filters.dump(_NFT_MSG_GETSETELEM, _body(table, port, None), flags=0):
            elements = netlink.attributes(netlink.attributes(answer, _FAMILY.size)[_NFTA_ELEMENTS])
            data = netlink.attributes(netlink.attributes(elements[_NFTA_LIST_ELEM])[_NFTA_ELEMENT_DATA])
            return text_of(int.from_bytes(data[_NFTA_DATA_VALUE][:4], "big"))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    return None


class Chain:
    """A base chain of IPv4 traffic: where it hooks in, and whether what no rule accepts is dropped."""

    __slots__ = ("drops", "family", "hook", "kind", "name", "table")

    def __init__(self, payload: bytes) -> None:
        self.family = payload[0]
        found = netlink.attributes(payload, _FAMILY.size)
        hook = netlink.attributes(found.get(_NFTA_CHAIN_HOOK, b""))
        self.table = netlink.read_text(found[_NFTA_CHAIN_TABLE])
        self.name = netlink.read_text(found[_NFTA_CHAIN_NAME])
        self.kind = netlink.read_text(found.get(_NFTA_CHAIN_TYPE, b""))
        self.hook = int.from_bytes(hook.get(_NFTA_HOOK_HOOKNUM, b"\xff"), "big")
        self.drops = found.get(_NFTA_CHAIN_POLICY) == bytes(4)


HOOK_FORWARD = 2
HOOK_POSTROUTING = 4
_NFPROTO_INET = 1


def chains(filters: Netlink) -> list[Chain]:
    """The base chains of every table that sees IPv4 packets, iptables-nft's too."""
    everything = filters.dump(_NFT_MSG_GETCHAIN, _FAMILY.pack(0, 0, 0))
    found = [Chain(payload) for payload in everything]
    return [chain for chain in found if chain.kind and chain.family in {_NFPROTO_INET, _NFPROTO_IPV4}]


def _change(filters: Netlink, messages: list[Message]) -> None:
    edge = _FAMILY.pack(0, 0, _NFNL_SUBSYS_NFTABLES)
    begin = Message(_BATCH_BEGIN, 0, edge, acknowledged=False)
    filters.request(begin, *messages, Message(_BATCH_END, 0, edge, acknowledged=False))


def _element(kind: int, flags: int, table: str, port: Port, address: str | None) -> Message:
    return Message(kind, flags, _body(table, port, address))


def _body(table: str, port: Port, address: str | None) -> bytes:
    """The element of ``port`` in its map; with ``address``, where it leads.

    The parts of a concatenated key are padded to four bytes each.
    """
    key = bytes([_PROTOCOLS[port.protocol], 0, 0, 0]) + _padded(port.host_port)
    if port.host_ip != EVERYWHERE:
        key = number_of(port.host_ip).to_bytes(4, "big") + key
    parts = [netlink.nested(_NFTA_ELEMENT_KEY, netlink.attribute(_NFTA_DATA_VALUE, key))]
    if address is not None:
        data = number_of(address).to_bytes(4, "big") + _padded(port.container_port)
        parts.append(netlink.nested(_NFTA_ELEMENT_DATA, netlink.attribute(_NFTA_DATA_VALUE, data)))
    return (
        _FAMILY.pack(_NFPROTO_IPV4, 0, 0)
        + netlink.text(_NFTA_ELEMENTS_TABLE, table)
        + netlink.text(_NFTA_ELEMENTS_SET, ANY if port.host_ip == EVERYWHERE else ONE)
        + netlink.nested(_NFTA_ELEMENTS, netlink.nested(_NFTA_LIST_ELEM, *parts))
    )


def _padded(port: int) -> bytes:
    return port.to_bytes(2, "big") + bytes(2)
