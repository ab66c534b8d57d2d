"""One start of a container: what the host lends for it, its first process, and giving everything back."""

from __future__ import annotations

import _signal
import errno
import os

from bench.errors import HostError, InstanceError
from runtimes import birth, libc, usernamespace
from runtimes.container import cgroup
from runtimes.container.cgroup import NoGroup, group_or_none, open_door
from runtimes.container.hierarchy import detect
from runtimes.container.resources import Resources
from runtimes.detached import make_root
from runtimes.engine import plan
from runtimes.engine.containers import find
from runtimes.engine.quantities import format_size
from runtimes.engine.security import security_of
from runtimes.engine.volumes import provide
from runtimes.members import Namespace
from runtimes.steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bench.errors import IsomarkError
    from runtimes.container.cgroup import Group
    from runtimes.engine.container import Container
    from runtimes.engine.journal import Entry, Journal
    from runtimes.engine.remap import Remap
    from runtimes.engine.rootless import Rootless
    from runtimes.network.lease import Lease, Port
    from runtimes.security.levels import Security
    from runtimes.spec import Spec

NOT_FOUND = 127
NOT_EXECUTABLE = 126
ENGINE_FAILED = 125
_KILL_SECONDS = 10.0
INITS = ("/usr/bin/docker-init", "/usr/bin/tini-static", "/usr/bin/catatonit", "/usr/libexec/podman/catatonit")


class StartFailed(InstanceError):
    """A container or a command in it did not start; ``code`` is what to exit with."""

    def __init__(self, message: str, hint: str, code: int) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class Launch:
    """Starts a container once; ``end`` undoes whatever was done, however far ``start`` came.

    Attributes:
        outputs: Descriptors to read -> stream; the monitor's to close, with ``input``.
        input: The descriptor that stdin is written to; -1 without.
        terminal: The terminal's master, which is also in ``outputs``; -1 without.
        network: What the container got, for its state.
        steps: What the container's process did until it executed the command, if that is traced.
    """

    def __init__(self, container: Container, journal: Journal, doing: Steps | None = None) -> None:
        """``doing`` learns what is done, and with its ``trace`` when, in the container as well."""
        self.pid = 0
        self.pidfd = -1
        self.outputs: dict[int, str] = {}
        self.input = -1
        self.terminal = -1
        self.network: dict[str, Any] | None = None
        self.notes: list[str] = []
        self.steps: list[tuple[str, float]] = []
        self._doing = doing or Steps(trace=False)
        self._container = container
        self._config = container.config
        self._journal = journal
        self._newborn: birth.Newborn | None = None
        self._group: Group | NoGroup | None = None
        self._group_entry: Entry | None = None
        self._lease: Lease | None = None
        self._rootless: Rootless | None = None
        self._remap: Remap | None = None
        self._mounts: Namespace | None = None
        self._ready = False

    def start(self) -> None:
        """Start it; when this returns its command runs.

        Raises:
            IsomarkError: it did not start; ``failure_code`` says what to exit with.
            OSError: descriptors or disk are used up.
        """
        doing = self._doing
        far: list[int] = []
        try:
            spec, security = self._plan()
            doing.begin("make its cgroups")
            birthplace, entrances = self._open_group(spec, security, far)
            self._plan_network(spec)
            root = self._open_root(spec, far)
            doing.begin("create its process in its namespaces")
            stdio = self._open_stdio(far)
            newborn = self._newborn = birth.bear(spec, stdio, birthplace=birthplace)
            self.pid, self.pidfd = newborn.pid, newborn.pidfd
            if self._users is None:
                doing.begin("make its root")
                root = make_root(spec)
                far += [] if root is None else [root]
            if self._remap is not None:
                self._remap.attend(newborn.pid, spec)
            newborn.provide(entrances, root)
            self._connect(newborn)
            doing.begin("wait until its command runs")
            ready = newborn.await_ready()
            doing.begin("run")
            self.steps = ready.steps
        finally:
            for fd in far:
                os.close(fd)
        self._ready = True
        if isinstance(self._group, NoGroup) and self._config["namespaces"]["pid"] != "private":
            self._mounts = Namespace(self.pid, "mnt")
        if ready.terminal is not None:
            self._take_terminal(ready.terminal)

    @property
    def _users(self) -> Rootless | Remap | None:
        """Whose users the container has, where they are not the host's."""
        return self._rootless or self._remap

    def _find_users(self) -> None:
        if not usernamespace.privileged():
            from runtimes.engine.rootless import Rootless

            self._rootless = Rootless(self._container, self._journal)
        elif self._config["namespaces"]["userns"] == "private":
            from runtimes.engine.remap import Remap

            self._remap = Remap(self._container)

    def _plan(self) -> tuple[Spec, Security]:
        """What to start; what it is to have is there."""
        self._doing.begin("decide whose users it has")
        self._find_users()
        self._doing.begin("decide what it may do")
        security = security_of(self._config, self._container.place.state)
        self._doing.begin("plan it")
        spec = plan.spec_of(self._container, security, init=self._find_init(), own_users=self._users is not None)
        spec["trace"] = self._doing.trace
        self._join(spec)
        if self._users is not None:
            self._users.give_users(spec)
        for mount in self._config["mounts"]:
            self._doing.begin(f"provide {mount['target']}")
            provide(self._container.place, mount, self._config["tree"], self._journal)
        return spec, security

    def _open_root(self, spec: Spec, far: list[int]) -> int | None:
        """Make the root for users of its own, who could not; else it is made while its process makes other mounts."""
        if self._users is None:
            return None
        self._doing.begin("make its root and mounts for its users")
        return self._users.open_root(spec, far)

    def _open_group(self, spec: Spec, security: Security, far: list[int]) -> tuple[int | None, list[int]]:
        """Make the container's cgroup: the one to be born in, and the files to enter others by."""
        birthplace, entrances = self._make_group(security)
        far += [*entrances, *([] if birthplace is None else [birthplace])]
        if birthplace is not None and self._remap is not None and self._remap.is_born_inside(spec):
            entrances = [*entrances, open_door(birthplace)]
            far.append(entrances[-1])
            birthplace = None
        spec["born_in_cgroup"] = birthplace is not None
        return birthplace, entrances

    def _make_group(self, security: Security) -> tuple[int | None, list[int]]:
        """The container's cgroup, and the ways into it."""
        wanted = self._config["resources"]
        memory, swap = wanted["memory_bytes"], wanted["memory_swap_bytes"]
        resources = Resources(
            cpus=wanted["cpus"],
            cpu_shares=wanted["cpu_shares"],
            cpuset_cpus=wanted["cpuset_cpus"],
            cpuset_mems=wanted["cpuset_mems"],
            memory=memory,
            memory_reservation=wanted["memory_reservation_bytes"],
            memory_swap=swap,
            pids=wanted["pids"],
            devices=security.devices,
        )
        layout = detect()
        delegated = {}
        if self._rootless is not None and layout.unified is not None:
            delegated = {"delegated": layout.unified.top}
        self._group_entry = self._journal.own("cgroup", name=self._container.id, **delegated)
        self._group = group_or_none(layout, self._container.id, resources)
        if self._rootless is not None:
            self._rootless.check_limits(layout, self._group, resources)
        return self._group.entrances()

    def _plan_network(self, spec: Spec) -> None:
        """Take an address and ports, and write the files that tell of them."""
        config = self._config
        nameserver = None
        if config["network"] == "bridge":
            self._doing.begin("plan its network")
        if config["network"] == "bridge" and self._rootless is not None:
            self.network = self._rootless.plan_network(ports_of(config))
            nameserver = (self.network or {}).get("nameserver")
            spec["wait"] = True
        elif config["network"] == "bridge":
            from runtimes.network import attach

            self._lease = attach.plan(self._container.place.state, self._container.id, ports_of(config))
            spec["network"] = self._lease.network()
            spec["wait"] = True
            self.network = describe(self._lease)
        if not config["network"].startswith("container:"):
            self._doing.begin("write its /etc/hosts and its like")
            from runtimes.network import names

            self.notes = names.write(
                self._container.path,
                hostname=spec["hostname"] or os.uname().nodename,
                address=(self.network or {}).get("address"),
                gateway=(self.network or {}).get("gateway"),
                add_hosts=config["add_hosts"],
                dns=config["dns"] or ([nameserver] if nameserver else []),
                dns_search=config["dns_search"],
                dns_options=config["dns_options"],
                host=config["network"] == "host",
            )

    def _connect(self, newborn: birth.Newborn) -> None:
        if self._config["network"] == "bridge":
            self._doing.begin("connect its network")
        if self._rootless is not None and self._config["network"] == "bridge":
            ports = self._rootless.connect(newborn.pid)
            if self.network is not None:
                self.network["ports"] = describe_ports(ports)
            newborn.release()
        if self._lease is None:
            return
        from runtimes.network import attach

        namespace = os.open(f"/proc/{newborn.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            attach.connect(self._lease, namespace)
        finally:
            os.close(namespace)
        newborn.release()

    def _join(self, spec: Spec) -> None:
        """Namespaces that are another container's."""
        for kind, flag, name in (("network", libc.CLONE_NEWNET, "net"), ("pid", libc.CLONE_NEWPID, "pid"),
                                 ("ipc", libc.CLONE_NEWIPC, "ipc")):  # fmt: skip
            value = self._config["network"] if kind == "network" else self._config["namespaces"][kind]
            if not value.startswith("container:"):
                continue
            other = find(self._container.place, value.partition(":")[2])
            process = other.process(other.state())
            if process is None:
                raise InstanceError(
                    f"container {other.name}, whose {kind} it shares, does not run",
                    hint=f"isomark container start {other.name}",
                )
            spec["join"].append([flag, f"/proc/{process.pid}/ns/{name}"])

    def _open_stdio(self, far: list[int]) -> tuple[int, int, int]:
        """The container's three descriptors; ``far`` gets those to close when it has them."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        far.append(null)
        if self._config["tty"]:
            return null, null, null
        stdin = null
        if self._config["stdin_open"]:
            stdin, self.input = os.pipe()
            far.append(stdin)
        ends = []
        for stream in ("stdout", "stderr"):
            near, end = os.pipe()
            self.outputs[near] = stream
            ends.append(end)
            far.append(end)
        if self._remap is not None:
            self._remap.lend_streams((stdin, *ends))
        return stdin, ends[0], ends[1]

    def _take_terminal(self, master: int) -> None:
        self.terminal = master
        self.outputs = {master: "stdout"}
        self.input = master if self._config["stdin_open"] else -1

    def _find_init(self) -> str | None:
        if not self._config["init"]:
            return None
        found = next((path for path in INITS if os.access(path, os.X_OK)), None)
        if found is None:
            raise HostError("option --init: this host has no small init", hint="apt-get install catatonit")
        return found

    def failure_code(self, error: IsomarkError) -> int:
        """What ``docker run`` exits with when a start fails like this."""
        return failure_code(self._newborn, error)

    def end(self) -> str | None:
        """Give everything back; return what could not be, if anything. Its journal entries stay then."""
        if not self._ready:
            if self._newborn is not None:
                self._newborn.abandon()
            for fd in {*self.outputs, self.input} - {-1}:
                os.close(fd)
        if self._newborn is not None:
            self._newborn.close()
            self.pidfd = -1
        try:
            self._give_back()
        except HostError as error:
            return error.message
        except OSError as error:
            return f"the host refused: {error.strerror}"
        return None

    def _give_back(self) -> None:
        if self._group is not None:
            self._group.remove()
            self._group = None
        elif self._group_entry is not None:  # it may have been made in part
            cgroup.remove(self._group_entry.what)
        if self._group_entry is not None:
            self._journal.gone(self._group_entry)
            self._group_entry = None
        if self._rootless is not None:
            self._rootless.end()
        if self._lease is not None:
            from runtimes.network import attach

            attach.disconnect(self._container.place.state, self._container.id)
            self._lease = None

    @property
    def rootless(self) -> dict[str, Any] | None:
        """What stands in for root's means, for the state; ``None`` under root."""
        return None if self._rootless is None else self._rootless.facts

    @property
    def remap(self) -> dict[str, Any] | None:
        """The container's users, for the state; ``None`` if they are the host's or an ordinary user's."""
        return None if self._remap is None else self._remap.facts

    def oom_killed(self) -> bool:
        """Whether a process of it was killed for want of memory."""
        return self._group is not None and bool(self._group.oom_kills())

    def oom_words(self) -> str:
        """One line about that."""
        limit = self._config["resources"]["memory_bytes"]
        return "out of memory" + (f": the limit is {format_size(limit)}" if limit is not None else "")

    def kill_rest(self) -> None:
        """Kill what survived the first process, which happens only without a PID namespace of its own."""
        if self._config["namespaces"]["pid"] == "private" or self._group is None:
            return
        if isinstance(self._group, NoGroup):  # its own mount namespace tells who belongs to it as well
            if self._mounts is not None:
                self._mounts.kill(_KILL_SECONDS)
                self._mounts.close()
            return
        for pid in self._group.members():
            try:
                os.kill(pid, _signal.SIGKILL)
            except ProcessLookupError:
                continue

    def freeze(self, *, frozen: bool) -> None:
        """Freeze or thaw all its processes.

        Raises:
            HostError: it has no cgroup, or does not freeze.
        """
        assert self._group is not None
        if frozen:
            self._group.freeze()
        else:
            self._group.thaw()


def failure_code(newborn: birth.Newborn | None, error: IsomarkError) -> int:
    """126 or 127 if it was the command that could not be executed, else 125."""
    failed = newborn.failed if newborn is not None else None
    if failed is None or not failed.step.startswith("run ") or not isinstance(error, InstanceError):
        return ENGINE_FAILED
    return NOT_FOUND if failed.errno == errno.ENOENT else NOT_EXECUTABLE


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


def describe(lease: Lease) -> dict[str, Any]:
    """A lease for the container's state."""
    return {
        "address": lease.address,
        "prefix_length": lease.prefix_length,
        "gateway": lease.gateway,
        "mac": lease.mac,
        "interface": lease.interface,
        "bridge": lease.bridge,
        "ports": describe_ports(lease.ports),
    }


def describe_ports(ports: Sequence[Port]) -> list[dict[str, Any]]:
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
