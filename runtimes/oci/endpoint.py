"""Where a registry answers, and whom we believe there: TLS with the system's, our own or Docker's certificates."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import UsageError
from runtimes.oci.reference import DEFAULT_REGISTRY

_DOCKER_HUB: Final = "registry-1.docker.io"
_CERTIFICATES: Final = (
    Path("/etc/docker/certs.d"),
    Path("/etc/containers/certs.d"),
    Path("~/.docker/certs.d"),
    Path("~/.config/containers/certs.d"),
)
"""Below them a directory for each registry, ``host:port``: *.crt are authorities, *.cert with *.key is ours."""


@dataclass(frozen=True)
class Endpoint:
    """A registry's address. ``plain`` is HTTP without TLS, which only loopback may use."""

    registry: str
    plain: bool = False
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        if self.plain and not self.is_loopback:
            raise UsageError(
                f"--insecure is only for registries on this host, and {self.registry} is elsewhere",
                hint=f"give its certificate with --ca-file, or put it in /etc/docker/certs.d/{self.registry}/ca.crt",
            )

    @property
    def url(self) -> str:
        """The root of its API, without the slash."""
        host = _DOCKER_HUB if self.registry == DEFAULT_REGISTRY else self.registry
        return f"{'http' if self.plain else 'https'}://{host}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this host, by its name alone."""
        return is_loopback(self.registry)

    def ssl_context(self) -> ssl.SSLContext:
        """Verify the peer against the system's authorities and those given for this registry.

        Raises:
            UsageError: a certificate file cannot be read.
        """
        context = ssl.create_default_context()
        try:
            if self.ca_file is not None:
                context.load_verify_locations(self.ca_file)
            for directory in _CERTIFICATES:
                self._load(context, directory.expanduser() / self.registry)
        except OSError as error:  # ssl.SSLError is one
            where = self.ca_file or f"{_CERTIFICATES[0]}/{self.registry}"
            raise UsageError(
                f"cannot use the certificates of {self.registry} in {where}: {error.strerror or error}",
                hint="they are PEM files: *.crt of authorities, *.cert and *.key of ours",
            ) from error
        return context

    @staticmethod
    def _load(context: ssl.SSLContext, directory: Path) -> None:
        for path in sorted(directory.glob("*.crt")):
            context.load_verify_locations(path)
        for path in sorted(directory.glob("*.cert")):
            context.load_cert_chain(path, path.with_suffix(".key"))


def is_loopback(host: str) -> bool:
    """Whether ``host`` (``name``, ``name:port``, ``[::1]:port``) names this very host."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
