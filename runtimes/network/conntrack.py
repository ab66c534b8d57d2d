"""Forgetting the datagram flows of a container that ended.

A client that keeps sending from one port keeps its flow alive, and with it the way to an address that is gone: a
restarted container, which has a new address, would never hear of it. Numbers: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno

from runtimes.network import netlink
from runtimes.network.lease import number_of
from runtimes.network.netlink import Message, Netlink

_CT_GET = 1 << 8 | 1
_CT_DELETE = 1 << 8 | 2
_CTA_TUPLE_ORIG = 1
_CTA_TUPLE_REPLY = 2
_CTA_FILTER = 25
_CTA_TUPLE_IP = 1
_CTA_IP_V4_SRC = 1
_CTA_FILTER_ORIG_FLAGS = 1
_CTA_FILTER_REPLY_FLAGS = 2
_CTA_FILTER_F_CTA_IP_SRC = 1
_HEADER = b"\x02\0\0\0"
"""struct nfgenmsg: AF_INET, version 0, no resource."""


def forget(filters: Netlink, address: str) -> None:
    """Delete every flow whose answers come from ``address``."""
    source = number_of(address).to_bytes(4, "big")
    wanted = netlink.nested(_CTA_TUPLE_IP, netlink.attribute(_CTA_IP_V4_SRC, source))
    flags = (
        netlink.u32(_CTA_FILTER_ORIG_FLAGS, 0),
        netlink.u32(_CTA_FILTER_REPLY_FLAGS, _CTA_FILTER_F_CTA_IP_SRC),
    )
    question = _HEADER + netlink.nested(_CTA_TUPLE_REPLY, wanted) + netlink.nested(_CTA_FILTER, *flags)
    for tuple_ in [_flow(answer, source) for answer in filters.dump(_CT_GET, question)]:
        if tuple_ is None:
            continue
        try:
            filters.request(Message(_CT_DELETE, 0, _HEADER + netlink.nested(_CTA_TUPLE_ORIG, tuple_)))
        except OSError as error:
            if error.errno != errno.ENOENT:  # it timed out meanwhile
                raise


def _flow(answer: bytes, source: bytes) -> bytes | None:
    """What identifies the flow, if its answers come from ``source``: kernels before 5.8 tell of every flow."""
    flow = netlink.attributes(answer, len(_HEADER))
    reply = netlink.attributes(netlink.attributes(flow[_CTA_TUPLE_REPLY])[_CTA_TUPLE_IP])
    return flow[_CTA_TUPLE_ORIG] if reply.get(_CTA_IP_V4_SRC) == source else None
