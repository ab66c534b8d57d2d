"""One start of a container: what the host lends for it, its first process, and giving everything back."""

from __future__ import annotations

import os

from bench.errors import HostError
from runtimes import birth
from runtimes.engine import plan
from runtimes.engine.confinement import Confinement, resources_of
from runtimes.engine.failure import failure_code
from runtimes.engine.means import means_of, shares
from runtimes.engine.quantities import format_size
from runtimes.engine.security import security_of
from runtimes.engine.streams import Streams
from runtimes.engine.volumes import provide
from runtimes.steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bench.errors import IsomarkError
    from runtimes.engine.container import Container
    from runtimes.engine.journal import Journal
    from runtimes.engine.means import Means
    from runtimes.engine.networks import Bridge, UserMode
    from runtimes.security.levels import Security
    from runtimes.spec import Spec

INITS = ("/usr/bin/docker-init", "/usr/bin/tini-static", "/usr/bin/catatonit", "/usr/libexec/podman/catatonit")


class Launch:
    """Starts a container once; ``end`` undoes whatever was done, however far ``start`` came.

    Attributes:
        streams: The monitor's ends of its standard streams.
        confinement: Its cgroup.
        network: What the container got, for its state.
        steps: What the container's process did until it executed the command, if that is traced.
    """

    def __init__(self, container: Container, journal: Journal, doing: Steps | None = None) -> None:
        """``doing`` learns what is done, and with its ``trace`` when, in the container as well."""
        self.pid = 0
        self.pidfd = -1
        self.streams = Streams(container.config)
        self.confinement = Confinement(container, journal)
        self.network: dict[str, Any] | None = None
        self.steps: list[tuple[str, float]] = []
        self._doing = doing or Steps(trace=False)
        self._container = container
        self._config = container.config
        self._journal = journal
        self._means: Means | None = None
        self._network: Bridge | UserMode | None = None
        self._newborn: birth.Newborn | None = None

    def start(self) -> None:
        """Start it; when this returns its command runs.

        Raises:
            IsomarkError: it did not start; ``failure_code`` says what to exit with.
            OSError: descriptors or disk are used up.
        """
        held: list[int] = []
        try:
            self._doing.begin("decide whose users it has")
            means = self._means = means_of(self._container, self._journal, self._doing)
            self._bear(means, held)
        finally:
            for fd in held:
                os.close(fd)

    def _bear(self, means: Means, held: list[int]) -> None:
        doing = self._doing
        spec, security = self._plan(means)
        doing.begin("make its cgroups")
        self.confinement.make(resources_of(self._config["resources"], security.devices), means)
        birthplace, entrances = self.confinement.entrances(held, born=means.is_born_in_cgroup(spec))
        spec["born_in_cgroup"] = birthplace is not None
        self._plan_network(means, spec)
        means.prepare_root(spec, held)
        doing.begin("create its process in its namespaces")
        stdio = self.streams.open(held)
        means.lend_streams(stdio)
        newborn = self._newborn = birth.bear(spec, stdio, birthplace=birthplace)
        self.pid, self.pidfd = newborn.pid, newborn.pidfd
        self.confinement.watch(self.pid)
        root = means.root(spec, held)
        means.attend(newborn.pid, spec)
        newborn.provide(entrances, root)
        if self._network is not None:
            doing.begin("connect its network")
            self._network.connect(newborn.pid, self.network)
            newborn.release()
        doing.begin("wait until its command runs")
        ready = newborn.await_ready()
        if ready.terminal is not None:
            self.streams.take_terminal(ready.terminal)
        doing.begin("run")
        self.steps = ready.steps
        self.confinement.watch(self.pid)

    def _plan(self, means: Means) -> tuple[Spec, Security]:
        """What to start; what it is to have is there."""
        self._doing.begin("decide what it may do")
        security = security_of(self._config, self._container.place.state)
        self._doing.begin("plan it")
        spec = plan.spec_of(self._container, security, init=self._find_init(), own_users=means.own_users)
        spec["trace"] = self._doing.trace
        if shares(self._config):
            from runtimes.engine.sharing import shared_by

            spec["join"] += [shared.entrance() for shared in shared_by(self._container)]
        means.give_users(spec)
        for mount in self._config["mounts"]:
            self._doing.begin(f"provide {mount['target']}")
            provide(self._container.place, mount, self._config["tree"], self._journal)
        return spec, security

    def _plan_network(self, means: Means, spec: Spec) -> None:
        """Take an address and ports, and write the files that tell of them."""
        if self._config["network"] == "bridge":
            self._doing.begin("plan its network")
            self._network = means.network()
            self.network = self._network.plan(spec)
            spec["wait"] = True
        if not self._config["network"].startswith("container:"):
            self._doing.begin("write its /etc/hosts and its like")
            self._write_names(spec["hostname"], self.network or {})

    def _write_names(self, hostname: str | None, network: dict[str, Any]) -> None:
        from runtimes.network import names

        config, nameserver = self._config, network.get("nameserver")
        names.write(
            self._container.path,
            hostname=hostname or os.uname().nodename,
            address=network.get("address"),
            gateway=network.get("gateway"),
            add_hosts=config["add_hosts"],
            dns=config["dns"] or ([nameserver] if nameserver else []),
            dns_search=config["dns_search"],
            dns_options=config["dns_options"],
            host=config["network"] == "host",
        )

    def _find_init(self) -> str | None:
        if not self._config["init"]:
            return None
        found = next((path for path in INITS if os.access(path, os.X_OK)), None)
        if found is None:
            raise HostError("option --init: this host has no small init", hint="apt-get install catatonit")
        return found

    def state(self) -> dict[str, Any]:
        """What the container's state says of what it has."""
        lent = {} if self._means is None else self._means.state()
        return {"network": self.network, **lent}

    def failure_code(self, error: IsomarkError) -> int:
        """What ``docker run`` exits with when a start fails like this."""
        return failure_code(self._newborn, error)

    def oom_words(self) -> str:
        """One line about its being out of memory."""
        limit = self._config["resources"]["memory_bytes"]
        return "out of memory" + (f": the limit is {format_size(limit)}" if limit is not None else "")

    def end(self) -> str | None:
        """Give everything back; return what could not be, if anything. Its journal entries stay then."""
        self.streams.close()
        if self._newborn is not None:
            self._newborn.abandon()
            self.pidfd = -1
        faults = []
        for give_back in (
            self.confinement.remove,
            *([] if self._network is None else [self._network.end]),
            *([] if self._means is None else [self._means.end]),
        ):
            try:
                give_back()
            except HostError as error:
                faults.append(error.message)
            except OSError as error:
                faults.append(f"the host refused: {error.strerror}")
        return "; ".join(faults) or None
