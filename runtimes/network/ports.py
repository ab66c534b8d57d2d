"""What ``-p`` means: ``[IP:][HOST[-HOST]:]CONTAINER[-CONTAINER][/tcp|/udp]``, as Docker reads it."""

from __future__ import annotations

from bench.errors import UsageError
from runtimes.network.lease import EVERYWHERE, TCP, UDP, Port, number_of

_HINT = "for example -p 8080:80, -p 127.0.0.1:5353:53/udp, -p 8000-8010:8000-8010, -p 80 (any free port of the host)"


def parse(text: str) -> list[Port]:
    """Read one ``-p``; a range gives one port each, a host range for one container port any of them.

    Raises:
        UsageError: malformed, with what is wrong.
    """
    try:
        return _parse(text)
    except ValueError as error:
        raise UsageError(f"cannot publish {text}: {error}", hint=_HINT) from error


def _parse(text: str) -> list[Port]:
    mapping, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else TCP
    if protocol not in {TCP, UDP}:
        raise ValueError(f"{protocol or 'nothing'} is neither tcp nor udp")
    if "[" in mapping or mapping.count(":") > 2:
        raise ValueError("IPv6 addresses cannot be published")
    *before, container = mapping.split(":")
    host_ip = before[0] if len(before) == 2 else EVERYWHERE
    number_of(host_ip)
    first, last = _range(container)
    if not before or before[-1] in {"", "0"}:
        if before == [""]:
            raise ValueError("the host's port is missing")
        return [Port(host_ip, 0, port, protocol) for port in range(first, last + 1)]
    host_first, host_last = _range(before[-1])
    if first == last:
        return [Port(host_ip, host_first, first, protocol, host_last)]
    if host_last - host_first != last - first:
        raise ValueError("the two ranges differ in length")
    return [Port(host_ip, host_first + step, first + step, protocol) for step in range(last - first + 1)]


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    low = _port(first)
    high = _port(last) if dash else low
    if high < low:
        raise ValueError(f"the range {text} runs backwards")
    return low, high


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError(f"{text or 'nothing'} is no port from 1 to 65535")
    return int(text)
