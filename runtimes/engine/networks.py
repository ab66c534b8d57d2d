"""The network of one start with ``--network bridge``: root's bridge, or a program's in user mode; and what tells of it.

Both kinds have ``plan``, which returns what the container's state says of it, ``connect`` and ``end``.
"""

from __future__ import annotations

import os

from bench.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from runtimes.engine.container import Container
    from runtimes.network.lease import Lease, Port
    from runtimes.network.usermode import Helper
    from runtimes.spec import Spec


class Bridge:
    """The bridge's: an address of the pool, and ports that nftables publishes."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._lease: Lease | None = None

    def plan(self, spec: Spec) -> dict[str, Any] | None:
        """Take an address and ports.

        Raises:
            HostError: there is none left, or a port is taken.
        """
        from runtimes.network import attach

        container = self._container
        lease = self._lease = attach.plan(container.place.state, container.id, ports_of(container.config))
        spec["network"] = lease.network()
        return {
            "address": lease.address,
            "prefix_length": lease.prefix_length,
            "gateway": lease.gateway,
            "mac": lease.mac,
            "interface": lease.interface,
            "bridge": lease.bridge,
            "ports": _describe(lease.ports),
        }

    def connect(self, pid: int, facts: dict[str, Any] | None) -> None:
        """Give process ``pid`` its interface; ``facts`` are those of ``plan``.

        Raises:
            HostError: the kernel refuses.
        """
        from runtimes.network import attach

        assert self._lease is not None
        assert facts is not None
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            attach.connect(self._lease, namespace)
        finally:
            os.close(namespace)

    def end(self) -> None:
        """Give everything back; idempotent."""
        if self._lease is None:
            return
        from runtimes.network import attach

        attach.disconnect(self._container.place.state, self._container.id)
        self._lease = None


class UserMode:
    """That of slirp4netns or pasta; where neither is installed there is loopback alone.

    Attributes:
        program: Which of them, or ``None``.
    """

    def __init__(self, container: Container, mark: Callable[[], str]) -> None:
        """``mark`` makes the marker by which the journal owns the program's process."""
        from runtimes.network import usermode

        self.program = usermode.available()
        self._container = container
        self._mark = mark
        self._ports = ports_of(container.config)
        self._helper: Helper | None = None

    def plan(self, _spec: Spec) -> dict[str, Any] | None:
        """Decide its addresses; ``None``: there are none.

        Raises:
            HostError: ports are to be published and nothing can.
        """
        from runtimes.network import usermode

        if self.program is None:
            if self._ports:
                raise HostError(
                    "no port can be published: without root that takes slirp4netns or pasta",
                    hint="apt-get install slirp4netns",
                )
            return None
        address, gateway, nameserver = usermode.ADDRESSES[self.program]
        return {
            "address": address,
            "prefix_length": usermode.PREFIX_LENGTH if address else 0,
            "gateway": gateway,
            "nameserver": nameserver,
            "interface": usermode.INTERFACE,
        }

    def connect(self, pid: int, facts: dict[str, Any] | None) -> None:
        """Start it for process ``pid``; ``facts``, those of ``plan``, get the ports as they were decided.

        Raises:
            HostError: it does not start, or a port is taken.
        """
        if self.program is None or facts is None:
            return
        from runtimes.network import usermode

        self._helper = usermode.start(pid, self._container.path, self._ports, marker=self._mark(), program=self.program)
        facts["ports"] = _describe(self._helper.ports)

    def end(self) -> None:
        """Stop it; idempotent."""
        if self._helper is not None:
            self._helper.stop()
            self._helper = None


def ports_of(config: dict[str, Any]) -> list[Port]:
    """What --publish and --publish-all ask for.

    Raises:
        UsageError: one is malformed.
    """
    from runtimes.network.ports import parse

    texts = list(config["ports"])
    if config["publish_all"]:
        texts += [f"0:{port}" for port in config["exposed"]]
    return [port for text in texts for port in parse(text)]


def _describe(ports: Sequence[Port]) -> list[dict[str, Any]]:
    """Published ports for the container's state."""
    return [
        {
            "host_ip": port.host_ip,
            "host_port": port.host_port,
            "port": port.container_port,
            "protocol": port.protocol,
        }
        for port in ports
    ]
