"""What a container was granted on the bridge: its address, its interface, its published ports."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtimes.spec import Network

TCP = "tcp"
UDP = "udp"
EVERYWHERE = "0.0.0.0"
"""Every address of the host."""


class Port:
    """One published port: ``host_ip:host_port`` on the host leads to ``container_port``.

    ``host_ip`` is ``0.0.0.0`` for every address of the host. ``host_port`` 0 asks for any free one.
    """

    __slots__ = ("container_port", "host_ip", "host_last", "host_port", "protocol")

    def __init__(self, host_ip: str, host_port: int, container_port: int, protocol: str, host_last: int = 0) -> None:
        """``host_last``: take the first free host port up to this one (Docker's ``-p 8000-8010:80``)."""
        self.host_ip = host_ip
        self.host_port = host_port
        self.container_port = container_port
        self.protocol = protocol
        self.host_last = host_last or host_port

    def __str__(self) -> str:
        """As ``docker port`` writes it the other way round: ``0.0.0.0:8080->80/tcp``."""
        return f"{self.host_ip}:{self.host_port}->{self.container_port}/{self.protocol}"


class Lease:
    """What ``attach.plan`` granted to one container.

    Attributes:
        state: The state directory it is recorded in.
        container: Whose it is.
        address: IPv4 address of ``eth0``; ``prefix_length`` and ``netmask`` of its subnet; ``gateway`` is the bridge.
        mac: MAC address of ``eth0``.
        interface: The host-side device's name, unique by address.
        bridge: The bridge's name, also the nftables table's; ``bridge_index`` is its number.
        group: Number of the device group that all interfaces on this bridge belong to.
        mtu: Bytes; the host's way out has it.
        ports: With every ``host_port`` decided.
    """

    __slots__ = (
        "address",
        "bridge",
        "bridge_index",
        "container",
        "gateway",
        "group",
        "interface",
        "mac",
        "mtu",
        "netmask",
        "ports",
        "prefix_length",
        "state",
    )

    def __init__(
        self,
        *,
        state: str,
        container: str,
        address: str,
        prefix_length: int,
        gateway: str,
        bridge: str,
        bridge_index: int,
        group: int,
        mtu: int,
    ) -> None:
        self.state = state
        self.container = container
        self.address = address
        self.prefix_length = prefix_length
        self.netmask = text_of(0xFFFF_FFFF << 32 - prefix_length & 0xFFFF_FFFF)
        self.gateway = gateway
        number = number_of(address)
        self.mac = ":".join(f"{octet:02x}" for octet in (0x02, 0x15, *number.to_bytes(4, "big")))
        self.interface = interface_of(number)
        self.bridge = bridge
        self.bridge_index = bridge_index
        self.group = group
        self.mtu = mtu
        self.ports: list[Port] = []

    def network(self) -> Network:
        """For ``Spec.network``: the child sets this up itself."""
        return {"address": self.address, "netmask": self.netmask, "gateway": self.gateway}


def number_of(address: str) -> int:
    """A dotted IPv4 address as a number.

    Raises:
        ValueError: it is not one.
    """
    octets = address.split(".")
    if len(octets) != 4 or not all(octet.isascii() and octet.isdecimal() and len(octet) <= 3 for octet in octets):
        raise ValueError(f"{address} is not an IPv4 address")
    return int.from_bytes(bytes([int(octet) for octet in octets]), "big")


def text_of(number: int) -> str:
    """The dotted form of an IPv4 address."""
    return ".".join(str(octet) for octet in number.to_bytes(4, "big"))


def interface_of(address: int) -> str:
    """The host-side device's name for an address."""
    return f"iso{address:08x}"
