"""Taking ports of the host: bound sockets that accept nothing, so that no other program gets them meanwhile.

The packets never reach these sockets, NAT leads them away first. Podman's conmon holds ports the same way.
"""

from __future__ import annotations

import _socket
import errno
import os

from bench.errors import HostError
from runtimes.network.lease import TCP, Port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_held: dict[tuple[str, str], list[int]] = {}
"""By state directory and container: sockets are a process's own, as this is."""


def take(ports: Iterable[Port]) -> tuple[list[Port], list[int]]:
    """Bind every port, or none; returns them with the host's port decided, and the descriptors that hold them.

    Raises:
        HostError: one is in use, not the host's address, or not permitted.
    """
    decided: list[Port] = []
    held: list[int] = []
    try:
        for port in ports:
            number, fd = _take(port)
            held.append(fd)
            decided.append(Port(port.host_ip, number, port.container_port, port.protocol))
    except BaseException:
        for fd in held:
            os.close(fd)
        raise
    return decided, held


def hold(state: str, container: str, descriptors: list[int]) -> None:
    """Keep ``descriptors`` open for a container until ``give_back`` or the end of this process."""
    if descriptors:
        _held[state, container] = descriptors


def give_back(state: str, container: str) -> None:
    """Close what this process holds for a container; idempotent."""
    for fd in _held.pop((state, container), ()):
        os.close(fd)


def taken(port: Port, by: str) -> HostError:
    """The error for a port that somebody else has."""
    return HostError(
        f"port {port.host_port}/{port.protocol} of {port.host_ip} is in use by {by}",
        hint=f"publish another one, or let one be chosen: -p {port.container_port}/{port.protocol}",
    )


def _take(port: Port) -> tuple[int, int]:
    for number in range(port.host_port, port.host_last + 1):
        try:
            return _bind(port.protocol, port.host_ip, number)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise _explain(port, number, error) from error
    if port.host_last > port.host_port:
        raise HostError(f"every port of {port.host_ip} from {port.host_port} to {port.host_last} is in use")
    raise taken(port, "another program or container (ss -lnp shows programs)")


def _bind(protocol: str, address: str, number: int) -> tuple[int, int]:
    kind = _socket.SOCK_STREAM if protocol == TCP else _socket.SOCK_DGRAM
    taker = _socket.socket(_socket.AF_INET, kind | _socket.SOCK_CLOEXEC, 0)
    try:
        if protocol == TCP:
            # connections that are about to end do not count, listeners do: asked by listening for a moment
            taker.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            taker.bind((address, number))
            taker.listen(0)
            taker.shutdown(_socket.SHUT_RD)
            taker.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 0)
        else:
            taker.bind((address, number))
        decided: int = taker.getsockname()[1]
        return decided, taker.detach()
    finally:
        taker.close()


def _explain(port: Port, number: int, error: OSError) -> HostError:
    hint = {
        errno.EADDRNOTAVAIL: "ip addr shows the addresses that this host has",
        errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start need root",
        errno.EMFILE: "publish fewer ports or raise the limit: ulimit -n",
    }.get(error.errno or 0, "")
    return HostError(f"cannot take port {number}/{port.protocol} of {port.host_ip}: {error.strerror}", hint=hint)
