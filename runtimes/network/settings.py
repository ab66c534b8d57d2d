"""Which subnet and name the bridge gets: what the user wrote to ``STATE/network/settings``, else what is free."""

from __future__ import annotations

from bench.errors import HostError
from runtimes.network import links
from runtimes.network.lease import number_of, text_of
from runtimes.network.netlink import Netlink

CANDIDATES = (
    *((0x0A_00_00_00 | second << 16, 16) for second in range(189, 200)),  # 10.189.0.0/16 …
    *((0xAC_10_00_00 | second << 16, 16) for second in range(28 - 16, 32 - 16)),  # 172.28.0.0/16 …
    *((0xC0_A8_00_00 | third << 8, 20) for third in range(160, 240, 16)),  # 192.168.160.0/20 …
)
"""Private subnets (RFC 1918) that neither Docker, podman nor libvirt takes first: number and prefix length."""
_LONGEST_PREFIX = 29
_SHORTEST_PREFIX = 8


class Settings:
    """What the user wants; ``None`` where it is ours to choose."""

    __slots__ = ("bridge", "subnet")

    def __init__(self) -> None:
        self.bridge: str | None = None
        self.subnet: tuple[int, int] | None = None


def read(path: str) -> Settings:
    """Read lines ``subnet = 10.9.0.0/16`` and ``bridge = NAME``; ``#`` begins a comment.

    Raises:
        HostError: malformed, with the line.
    """
    wanted = Settings()
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return wanted
    for number, line in enumerate(lines, 1):
        key, equals, value = (part.strip() for part in line.partition("#")[0].partition("="))
        try:
            if key == "subnet":
                wanted.subnet = parse_subnet(value)
            elif key == "bridge":
                wanted.bridge = _name(value)
            elif key or equals:
                raise ValueError(f"{key or 'nothing'} is no setting")
        except ValueError as error:
            hint = "it may say subnet = 10.9.0.0/16 and bridge = NAME"
            raise HostError(f"{path}:{number}: {error}", hint=hint) from error
    return wanted


def parse_subnet(value: str) -> tuple[int, int]:
    """``(first address, prefix length)`` of ``10.9.0.0/16``.

    Raises:
        ValueError: it is none, or too small or too large for containers.
    """
    address, _, length = value.partition("/")
    if not length.isascii() or not length.isdecimal() or not _SHORTEST_PREFIX <= int(length) <= _LONGEST_PREFIX:
        raise ValueError(f"{value} needs a prefix length from /{_SHORTEST_PREFIX} to /{_LONGEST_PREFIX}")
    network = number_of(address)
    if network & (1 << 32 - int(length)) - 1:
        raise ValueError(f"{value} has bits set behind its prefix")
    return network, int(length)


def choose(wanted: Settings, former: tuple[int, int] | None, routes: Netlink) -> tuple[int, int]:
    """The subnet: the user's, else the one of last time, else the first that no route of the host leads to.

    Raises:
        HostError: it, or every candidate, collides with a route.
    """
    known = links.routes_of(routes)
    ours = (former, *CANDIDATES) if former is not None else CANDIDATES
    choices = (wanted.subnet,) if wanted.subnet is not None else ours
    for network, length in choices:
        if not any(route.meets(network, length) for route in known):
            return network, length
    network, length = choices[0]
    met = next(route for route in known if route.meets(network, length))
    raise HostError(
        f"the subnet {text_of(network)}/{length} for containers meets the host's route to "
        f"{text_of(met.destination)}/{met.prefix_length}",
        hint="write a free one to network/settings in the state directory: subnet = 10.9.0.0/16",
    )


def _name(value: str) -> str:
    """A device name (kernel: dev_valid_name) that nft takes as it is."""
    if not value or len(value.encode()) > 15 or not value.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"{value} cannot be the name of a bridge")
    if not value.isascii() or not value[0].isalpha():
        raise ValueError(f"{value} cannot be the name of an nftables table")
    return value
