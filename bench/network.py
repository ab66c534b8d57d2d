"""The lab network: one bridge in a network namespace of its own, for containers and virtual servers alike.

Both kinds of instance hang on the same bridge, so their network paths differ only in what the
driver adds (a veth pair, a tap device). The host's own addresses, routes and firewall stay out of
it, and load from the generator never leaves the namespace.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.errors import HostError
from bench.journal import Journal

if TYPE_CHECKING:
    from pyroute2 import IPRoute

SUBNET: Final = ipaddress.IPv4Network("10.213.0.0/16")
BRIDGE: Final = "isobr0"
NETNS_DIRECTORY: Final = Path("/run/netns")
_CLONE_NEWNET: Final = 0x40000000


@dataclass(frozen=True)
class Lease:
    """One address on the lab network. ``interface`` is the host-side device's name."""

    address: str
    prefix_length: int
    gateway: str
    mac: str
    interface: str


def example_lease() -> Lease:
    """A lease that no network granted, for showing what a request would look like."""
    return _lease(SUBNET[2], "iso0000000001")


class LabNetwork:
    """A network namespace with a bridge and a pool of addresses; owned by one run.

    Raises:
        HostError: the host grants no network namespace (no root), or iproute2 is absent.
    """

    def __init__(self, journal: Journal) -> None:
        self.name = f"isomark-{journal.owner.id}"
        self.path = NETNS_DIRECTORY / self.name
        self._journal = journal
        self._entry = journal.own("netns", name=self.name)
        self._hosts = SUBNET.hosts()
        next(self._hosts)  # the bridge's own
        self._count = 0
        self._routes: IPRoute | None = None
        self._host: IPRoute | None = None
        self._bridge = 0
        try:
            self._create()
        except BaseException:
            self.close()
            raise

    def lease(self) -> Lease:
        """Take the next address; addresses are not reused within a run, so no stale ARP entry answers."""
        try:
            address = next(self._hosts)
        except StopIteration:
            raise HostError("the lab network has no address left", hint="split the suite into several runs") from None
        self._count += 1
        return _lease(address, f"iso{self._journal.owner.id[:6]}{self._count:04x}")

    def connect(self, lease: Lease, netns_fd: int) -> None:
        """Create a veth pair: ``lease.interface`` on the bridge, its peer as ``eth0`` in the given namespace.

        The peer has the lease's MAC; address and route are the instance's to set. The pair goes with
        the namespace.
        """
        assert self._routes is not None
        self._routes.link(
            "add",
            ifname=lease.interface,
            kind="veth",
            master=self._bridge,
            state="up",
            peer={"ifname": "eth0", "address": lease.mac, "net_ns_fd": netns_fd},
        )

    def adopt(self, interface: str) -> None:
        """Move a tap device from the host's namespace onto the bridge; its owner's descriptor stays valid.

        Raises:
            HostError: there is no such device.
        """
        assert self._routes is not None
        assert self._host is not None
        found = self._host.link_lookup(ifname=interface)
        if not found:
            raise HostError(f"there is no network device {interface}")
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._host.link("set", index=found[0], net_ns_fd=fd)
        finally:
            os.close(fd)
        index = self._routes.link_lookup(ifname=interface)[0]
        self._routes.link("set", index=index, master=self._bridge, state="up")

    def tcp_socket(self) -> socket.socket:
        """Return a TCP socket of this network namespace.

        A thread enters the namespace to make it (setns(2) concerns one thread) and ends; the others stay outside.

        Raises:
            OSError: the namespace cannot be entered.
        """
        with ThreadPoolExecutor(1) as thread, self.path.open("rb") as namespace:
            return thread.submit(_socket_of, namespace.fileno()).result()

    def inside(self, command: list[str]) -> list[str]:
        """Return ``command`` so that it runs within this network namespace."""
        return ["nsenter", f"--net={self.path}", "--", *command]

    def close(self) -> None:
        """Remove the namespace with everything in it; idempotent."""
        for routes in (self._routes, self._host):
            if routes is not None:
                routes.close()
        self._routes = self._host = None
        if self.path.exists():
            subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False)
        if not self.path.exists():
            self._journal.gone(self._entry)

    def _create(self) -> None:
        try:
            made = subprocess.run(["ip", "netns", "add", self.name], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise HostError("the program ip is not installed", hint="apt-get install iproute2") from error
        if made.returncode != 0:
            raise HostError(
                f"cannot create a network namespace: {made.stderr.strip()}",
                hint="run as root; without it instances have no network of their own",
            )
        from pyroute2 import IPRoute  # 0.3 s to import, so only when a network is wanted

        self._host = IPRoute()
        self._routes = IPRoute(netns=self.name)
        self._routes.link("set", index=1, state="up")
        self._routes.link("add", ifname=BRIDGE, kind="bridge", br_forward_delay=0, br_stp_state=0)
        self._bridge = self._routes.link_lookup(ifname=BRIDGE)[0]
        self._routes.addr("add", index=self._bridge, address=str(SUBNET[1]), prefixlen=SUBNET.prefixlen)
        self._routes.link("set", index=self._bridge, state="up")


def _socket_of(namespace: int) -> socket.socket:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return socket.socket()


def _lease(address: ipaddress.IPv4Address, interface: str) -> Lease:
    return Lease(
        address=str(address),
        prefix_length=SUBNET.prefixlen,
        gateway=str(SUBNET[1]),
        mac=":".join(f"{octet:02x}" for octet in (0x02, 0x15, *address.packed)),
        interface=interface,
    )
