"""A container's network from plan to end: the calls that the life cycle makes, in this order.

    lease = plan(state, container, ports)        # before the birth: address and ports are its own from here on
    spec["network"] = lease.network()            # the child sets its own address, after ``release``
    newborn = bear(spec, ...)                    # with CLONE_NEWNET and ``wait``
    connect(lease, netns_fd)                     # /proc/PID/ns/net; eth0 is there, then ``release``
    hand_over(state, container, monitor_pid)     # only if another process than the planner watches over it
    ...
    disconnect(state, container)                 # when it ended: a millisecond, the interface goes with its namespace
                                                 # (by the process that planned, which holds the host's ports)
    linger(state)                                # when nobody waits any more: removes the bridge if it stays unused

A lease is its own journal (``STATE/owned``), so ``isomark clean`` finds what a kill left; own nothing beside it.
"""

from __future__ import annotations

import os
import time

from bench.errors import HostError
from runtimes.engine.process import Process
from runtimes.network import links, netlink, pool
from runtimes.network.grants import Grants, refused
from runtimes.network.netlink import Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtimes.network.lease import Lease, Port

LINGER_SECONDS = 1.0
"""Making a bridge takes 7 ms and removing it 40, which starts one after the other should not pay each time."""

_left_idle: dict[str, str] = {}
"""By state directory, what tells whether the bridge that this process left idle still is."""
_BRIDGED_FRAMES_ARE_FILTERED = "/proc/sys/net/bridge/bridge-nf-call-iptables"


def plan(state: str, container: str, ports: Sequence[Port] = (), *, owner: int | None = None) -> Lease:
    """Grant ``container`` a new address, and the host's ports it wants; an older lease of it is ended first.

    Makes the bridge, the nftables table and forwarding where they are missing. Safe for many at once and against
    kill -9 at any moment.

    Args:
        state: The state directory; ``STATE/network`` is this module's.
        container: Its id (letters, digits, ``_.-``); one lease at a time.
        ports: From ``ports.parse``. This process holds them until it disconnects or ends.
        owner: The process whose life the lease is tied to (this one if ``None``); see ``hand_over``.

    Raises:
        HostError: no free address, no permission, nft is missing, or a port is taken (by whom, as far as known).
    """
    pool.check_name(container)
    process = _process(os.getpid() if owner is None else owner)
    with Grants(state) as grants:
        grants.end(grants.leases.of_container(container))
        try:
            return grants.grant(container, ports, process)
        except BaseException:
            if not len(grants.leases):
                _left_idle[state] = grants.leases.write_idle()
            raise


def hand_over(state: str, container: str, owner: int) -> None:
    """Tie the lease of ``container`` to the life of process ``owner`` (the monitor, once it is there)."""
    process = _process(owner)
    with pool.Pool(state) as leases:
        for record in leases.of_container(container):
            leases.rewrite(record, process)


def connect(lease: Lease, netns_fd: int) -> None:
    """Make the veth pair: the host's end on the bridge, ``eth0`` in the namespace of ``netns_fd``, with which it goes.

    Raises:
        HostError: the kernel refused; the namespace has an eth0 of its own already.
    """
    try:
        with Netlink(netlink.NETLINK_ROUTE) as routes:
            try:
                links.add_veth(routes, lease, netns_fd=netns_fd, peer="eth0")
            except FileExistsError:  # of a dead container whose namespace somebody still holds
                if not links.delete(routes, lease.interface):
                    raise
                links.add_veth(routes, lease, netns_fd=netns_fd, peer="eth0")
            if lease.ports and _frames_are_filtered():
                links.reflect(routes, lease.interface)
    except OSError as error:
        raise refused(error) from error


def disconnect(state: str, container: str) -> None:
    """End the lease of ``container``: its ports and its address are free. Idempotent.

    The host's ports are free for other programs when the process that planned disconnects or ends. The interface goes
    with the network namespace: deleting it takes the kernel 15 ms that nobody needs to wait for.
    """
    with Grants(state) as grants:
        token = grants.end(grants.leases.of_container(container))
        if token is not None:
            _left_idle[state] = token


def linger(state: str, seconds: float = LINGER_SECONDS) -> None:
    """Remove the bridge if this process left it idle, and no container came within ``seconds``.

    For the monitor, when it has told everybody of the end: the next start finds the bridge, or the host is as before.
    """
    token = _left_idle.pop(state, None)
    if token is None:
        return
    time.sleep(seconds)
    if not os.path.isdir(f"{state}/network"):  # somebody deleted the state directory: do not make it again
        return
    with Grants(state) as grants:
        if grants.leases.is_idle_since(token):
            grants.retire()


def retire(state: str) -> bool:
    """Remove bridge, table and forwarding if no container uses them; whether they are gone. Takes 50 ms. Idempotent."""
    with Grants(state) as grants:
        return grants.retire()


def obstacles(state: str) -> list[str]:
    """What on this host keeps containers from the outside: each a sentence with its remedy, for ``doctor``."""
    from runtimes.network import bridge, firewall

    ours = bridge.load(state)
    with Netlink(netlink.NETLINK_NETFILTER) as filters:
        return firewall.obstacles(filters, ours.name if ours is not None else f"{bridge.NAME}0")


def remove(what: Mapping[str, str]) -> None:
    """Remover of journal kind ``network``: end what["container"]'s lease with its interface, then ``retire``."""
    with Grants(what["state"]) as grants:
        record = grants.leases.of_address(what["address"])
        if record is not None and record.container == what["container"] and not grants.is_watched(record):
            grants.end([record])
            links.delete(grants.routes, record.interface)
        grants.retire()


def _process(pid: int) -> Process:
    process = Process.of(pid)
    if process is None:
        raise HostError(f"process {pid}, which is to own a network, does not run")
    return process


def _frames_are_filtered() -> bool:
    """Whether packets between ports of a bridge pass through the IPv4 hooks (br_netfilter).

    Then a packet to a container's own published port is sent back on the bridge's level, which hairpin mode must
    allow; without it the host routes it.
    """
    try:
        with open(_BRIDGED_FRAMES_ARE_FILTERED, encoding="utf-8") as file:
            return file.read().strip() == "1"
    except FileNotFoundError:
        return False
