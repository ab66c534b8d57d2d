"""Network interfaces by ioctl (netdevice(7)): a netlink library would cost more than the whole set-up."""

from __future__ import annotations

import _socket
import fcntl
from _struct import pack, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# linux/sockios.h
_SIOCADDRT: Final = 0x890B
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
# linux/if.h, linux/route.h
_IFF_UP: Final = 1
_RTF_UP: Final = 1
_RTF_GATEWAY: Final = 2

_NAME: Final = "16s"
_ADDRESS: Final = "16s"
_ROUTE: Final = f"L{_ADDRESS * 3}HhLPhPLLH0L"
"""struct rtentry: padding; destination, gateway, mask; flags; the rest stays zero."""


def open_control() -> _socket.socket:
    """A socket to ask the kernel by; any will do."""
    return _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)


def bring_up(name: str, network: _socket.socket) -> None:
    """Set interface ``name`` up."""
    request = pack(f"{_NAME}h22x", name.encode(), 0)
    answer = fcntl.ioctl(network, _SIOCGIFFLAGS, request)
    (flags,) = unpack_from("h", answer, 16)
    fcntl.ioctl(network, _SIOCSIFFLAGS, pack(f"{_NAME}h22x", name.encode(), flags | _IFF_UP))


def set_address(name: str, address: str, netmask: str, network: _socket.socket) -> None:
    """Give interface ``name`` its IPv4 address and mask."""
    for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, netmask)):
        fcntl.ioctl(network, request, pack(f"{_NAME}{_ADDRESS}8x", name.encode(), _socket_address(value)))


def set_default_route(gateway: str, network: _socket.socket) -> None:
    """Send everything else through ``gateway``."""
    anywhere = _socket_address("0.0.0.0")
    addresses = (anywhere, _socket_address(gateway), anywhere)
    route = pack(_ROUTE, 0, *addresses, _RTF_UP | _RTF_GATEWAY, 0, 0, 0, 0, 0, 0, 0, 0)
    fcntl.ioctl(network, _SIOCADDRT, route)


def _socket_address(address: str) -> bytes:
    return pack("HH4s8x", _socket.AF_INET, 0, _socket.inet_aton(address))
