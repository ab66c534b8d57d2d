"""A container's own resolv.conf, hosts and hostname: files to bind over the image's."""

from __future__ import annotations

import _socket
import os

from bench.errors import HostError, UsageError
from runtimes.engine import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FILES = ("resolv.conf", "hosts", "hostname")
"""Written to the container's directory; bind each to /etc/NAME."""
RESOLV_CONFS = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf")
"""The host's own, then where the upstream servers stand when it names only a resolver on loopback."""
HOSTS = "/etc/hosts"

_LOCAL = (
    "127.0.0.1 localhost",
    "::1 localhost ip6-localhost ip6-loopback",
    "fe00::0 ip6-localnet",
    "ff00::0 ip6-mcastprefix",
    "ff02::1 ip6-allnodes",
    "ff02::2 ip6-allrouters",
)
_HOST_GATEWAY = "host-gateway"
_LONGEST_HOSTNAME = 64
"""Bytes; __NEW_UTS_LEN in linux/utsname.h."""


class _Resolver:
    """What a resolv.conf says (resolv.conf(5))."""

    __slots__ = ("nameservers", "options", "search")

    def __init__(self, lines: Iterable[str]) -> None:
        self.nameservers: list[str] = []
        self.search: list[str] = []
        self.options: list[str] = []
        for line in lines:
            words = line.partition("#")[0].partition(";")[0].split()
            if len(words) > 1 and words[0] == "nameserver":
                self.nameservers.append(words[1])
            elif words and words[0] in {"search", "domain"}:  # the last one counts
                self.search = words[1:]
            elif words and words[0] == "options":
                self.options += words[1:]


def write(
    directory: str,
    *,
    hostname: str,
    address: str | None,
    gateway: str | None = None,
    add_hosts: Sequence[str] = (),
    dns: Sequence[str] = (),
    dns_search: Sequence[str] = (),
    dns_options: Sequence[str] = (),
    host: bool = False,
) -> list[str]:
    """Write the three files to ``directory``; returns what the user should know (a nameserver that was left out).

    Args:
        directory: The container's own.
        hostname: As set in its UTS namespace.
        address: On the bridge; ``None`` without one (network none or host).
        gateway: What ``--add-host NAME:host-gateway`` means.
        add_hosts: ``NAME:ADDRESS`` or ``NAME=ADDRESS``.
        dns: Nameservers instead of the host's.
        dns_search: Search domains instead of the host's; ``.`` for none.
        dns_options: resolv.conf options instead of the host's.
        host: The container shares the host's network: loopback nameservers are right, the host's names stay.

    Raises:
        UsageError: an option is malformed.
        HostError: the directory cannot be written.
    """
    check_hostname(hostname)
    resolver, notes = _resolver(dns, dns_search, dns_options, shares_host=host)
    lines = [*(_read(HOSTS).splitlines() if host else _LOCAL)]
    if address is not None:
        lines.append(f"{address} {hostname}")
    elif not host:
        lines.append(f"127.0.1.1 {hostname}")
    lines += [_host_line(entry, gateway) for entry in add_hosts]
    contents = (_spell(resolver), "\n".join((*lines, "")), f"{hostname}\n")
    try:
        for name, content in zip(FILES, contents, strict=True):
            data = content.encode(errors="surrogateescape")
            files.write_whole(f"{directory}/{name}", data, mode=0o644, sync=False)  # written anew by each start
    except OSError as error:
        raise HostError(f"cannot write {error.filename or directory}: {error.strerror}") from error
    return notes


def check_hostname(name: str) -> None:
    """Refuse what cannot be a host name (hostname(7)).

    Raises:
        UsageError: it is empty, too long or has other characters than letters, digits, ``-``, ``_`` and ``.``.
    """
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not (plain.isascii() and plain.isalnum()) or len(name) > _LONGEST_HOSTNAME or name[0] in "-.":
        raise UsageError(
            f"{name!r} cannot be a host name", hint=f"letters, digits, - and ., at most {_LONGEST_HOSTNAME} of them"
        )


def _resolver(
    dns: Sequence[str], dns_search: Sequence[str], dns_options: Sequence[str], *, shares_host: bool
) -> tuple[_Resolver, list[str]]:
    notes: list[str] = []
    resolver = _Resolver(_read(RESOLV_CONFS[0]).splitlines())
    for server in dns:
        if _family(server) is None:
            raise UsageError(f"--dns {server}: not an address", hint="a nameserver's address, as 192.0.2.53")
    if dns:
        resolver.nameservers = list(dns)
    elif not shares_host:
        resolver.nameservers, notes = _reachable(resolver.nameservers)
    if dns_search:
        resolver.search = [domain for domain in dns_search if domain != "."]
    if dns_options:
        resolver.options = list(dns_options)
    for word in (*resolver.search, *resolver.options):
        if not word.isprintable() or " " in word:
            raise UsageError(f"{word!r} cannot stand in a resolv.conf")
    return resolver, notes


def _reachable(nameservers: list[str]) -> tuple[list[str], list[str]]:
    """Those that a container reaches, from the first of the host's files that names one; and what to tell the user."""
    if usable := [server for server in nameservers if _is_usable(server)]:
        return usable, []
    for path in RESOLV_CONFS[1:]:
        if usable := [server for server in _Resolver(_read(path).splitlines()).nameservers if _is_usable(server)]:
            return usable, []
    if not nameservers:
        return [], ["the host names no nameserver, so the container resolves no names: give one with --dns"]
    return [], [
        f"the host's nameserver {', '.join(nameservers)} is not reachable from a container and no other one is known, "
        "so the container resolves no names: give one with --dns"
    ]


def _is_usable(server: str) -> bool:
    """An IPv4 address off loopback: containers have no IPv6."""
    return _family(server) == _socket.AF_INET and not server.startswith("127.") and server != "0.0.0.0"


def _family(address: str) -> int | None:
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, address)
        except (OSError, ValueError):  # a ValueError is a null byte in it
            continue
        return family
    return None


def _host_line(entry: str, gateway: str | None) -> str:
    separator = "=" if "=" in entry else ":"
    name, found, address = entry.partition(separator)
    if not found:
        raise UsageError(f"--add-host {entry} names no address", hint="--add-host NAME:ADDRESS")
    check_hostname(name)
    address = address.removeprefix("[").removesuffix("]")
    if address == _HOST_GATEWAY:
        if gateway is None:
            raise UsageError("there is no host-gateway without a bridge", hint="--network bridge, or give an address")
        address = gateway
    if _family(address) is None:
        raise UsageError(f"--add-host {entry}: {address or 'nothing'} is not an address")
    return f"{address} {name}"


def _spell(resolver: _Resolver) -> str:
    lines = [f"nameserver {server}" for server in resolver.nameservers]
    if resolver.search:
        lines.append(f"search {' '.join(resolver.search)}")
    if resolver.options:
        lines.append(f"options {' '.join(resolver.options)}")
    return "\n".join((*lines, ""))


def _read(path: str) -> str:
    """The host's file; empty if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    with open(fd, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
