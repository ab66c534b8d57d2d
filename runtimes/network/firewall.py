"""The nftables table of one bridge: the way out, published ports, and what may be forwarded.

One IPv4 table named like the bridge, made whole in one transaction of nft(8); published ports are elements of its
maps (``maps``). Tables of others are never touched. What they drop stays dropped: ``obstacles`` tells.
"""

from __future__ import annotations

from runtimes.network import maps, program
from runtimes.network.netlink import Netlink

_RULES = """
table ip {table} {{
    map any {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
    map one {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}

    # route_localnet lets the host's loopback reach published ports; nothing that comes from a container may use it
    chain raw {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{table}" ip daddr 127.0.0.0/8 drop
    }}
    chain published {{
        dnat ip to ip daddr . meta l4proto . th dport map @one
        dnat ip to meta l4proto . th dport map @any
    }}
    # 127.0.0.1 from outside is a forgery: only the host's own output may mean it
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto {{ tcp, udp }} jump published
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        fib daddr type local meta l4proto {{ tcp, udp }} jump published
    }}
    # what came through a published port and goes back to this bridge must return the way it came
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{table}" ip saddr 127.0.0.0/8 masquerade
        oifname "{table}" ip saddr {subnet} ct status dnat masquerade
        oifname != {{ "{table}", "lo" }} ip saddr {subnet} ip daddr != 224.0.0.0/4 masquerade
    }}
    # a port that is not published is not reached by a route to the subnet either
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{table}" accept
        oifname "{table}" ct state established,related accept
        oifname "{table}" ct status dnat accept
        oifname "{table}" drop
    }}
}}
"""


def make(table: str, subnet: str) -> None:
    """Make the table, which must not be there, in one transaction.

    No ``delete table`` before it: nft would wait for the kernel to forget the old one, 20 ms instead of 3.

    Raises:
        HostError: nft is missing or refused.
    """
    program.run(["nft", "-f", "-"], _RULES.format(table=table, subnet=subnet), package="nftables")


def obstacles(filters: Netlink, bridge: str) -> list[str]:
    """What on this host drops forwarded packets by policy, each with the remedy as a command: Docker's FORWARD chain.

    An accept in a table of ours cannot undo a drop in another one (nft(8), "accept").
    """
    found = []
    for chain in maps.chains(filters):
        if chain.hook != maps.HOOK_FORWARD or not chain.drops or chain.table == bridge:
            continue
        where = f"{chain.table} {chain.name}"
        if (chain.table, chain.name) == ("filter", "FORWARD"):
            remedy = f"iptables -I FORWARD -i {bridge} -j ACCEPT; iptables -I FORWARD -o {bridge} -j ACCEPT"
        else:
            remedy = f"let {where} accept what comes from and goes to {bridge}"
        found.append(f"the nftables chain {where} drops what it does not know: {remedy}")
    return found


def others_translate(filters: Netlink, ours: str) -> bool:
    """Whether another table translates addresses, so that somebody else relies on forwarding too."""
    return any(
        chain.kind == "nat" and chain.hook == maps.HOOK_POSTROUTING and not chain.table.startswith(ours)
        for chain in maps.chains(filters)
    )
