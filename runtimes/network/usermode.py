"""A rootless container's network: slirp4netns or pasta, a process that lives as long as the container.

slirp4netns comes first where both are installed: it ends with the process that started it, even after kill -9, and
gives every container the same addresses. pasta is faster, and gives the container the host's own address; the version
in Debian 12 (2023) closes connections from other machines to published ports on newer kernels.

Through slirp4netns, datagrams to a port that is published on 127.0.0.1 arrive, and their answers do not.
"""

from __future__ import annotations

import _socket
import errno
import os
import select

from bench.errors import HostError
from runtimes.engine import text
from runtimes.engine.process import Process
from runtimes.network import reserve
from runtimes.network.lease import EVERYWHERE, TCP, Port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SLIRP = "slirp4netns"
PASTA = "pasta"
INTERFACE = "eth0"
PREFIX_LENGTH = 24
ADDRESSES: dict[str, tuple[str | None, str | None, str | None]] = {
    SLIRP: ("10.0.2.100", "10.0.2.2", "10.0.2.3"),
    PASTA: (None, None, None),
}
"""What the container sees as its own address, the gateway and the nameserver; ``None``: as the host has it."""
OWNER_VARIABLE = "ISOMARK_OWNER"
"""As in ``bench.journal``, which is too heavy for here."""
_LOG = "network.log"
_SOCKET = "slirp4netns.sock"
_READY = "pasta.ready"
_PATIENCE_SECONDS = 10
_SIGKILL = 9
_SIGPIPE = 13


class Helper:
    """A running user-mode network.

    Attributes:
        program: ``slirp4netns`` or ``pasta``.
        pid: Its process, a child of the one that called ``start``; ``pidfd`` is a descriptor of it.
        address: What the container sees as its own; ``None``: the host's (pasta).
        gateway: What means the host there; ``None``: nothing does (pasta).
        nameserver: Where the helper answers DNS; ``None``: as the host's resolv.conf says (pasta).
        ports: With every ``host_port`` decided.
    """

    __slots__ = ("_lifeline", "_process", "address", "gateway", "nameserver", "pid", "pidfd", "ports", "program")

    def __init__(self, program: str, pid: int, ports: list[Port], lifeline: int | None) -> None:
        """``lifeline``: the helper ends when this descriptor closes."""
        self.program = program
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.address, self.gateway, self.nameserver = ADDRESSES[program]
        self.ports = ports
        self._lifeline = lifeline
        self._process = Process.of(pid)  # None if it failed so soon

    def stop(self) -> None:
        """End it and wait for that; idempotent. The network goes with it."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self.pidfd == -1:
            return
        os.close(self.pidfd)
        self.pidfd = -1
        if self._process is not None:
            self._process.signal(_SIGKILL)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:  # whoever waits for any child was quicker
            return


def available() -> str | None:
    """``slirp4netns`` or ``pasta``, whichever is installed; ``None``: only ``--network none`` and host are possible."""
    for program in (SLIRP, PASTA):
        for directory in os.environ.get("PATH", os.defpath).split(":"):
            if os.access(f"{directory}/{program}", os.X_OK):
                return program
    return None


def start(
    pid: int, directory: str, ports: Sequence[Port] = (), *, marker: str = "", program: str | None = None
) -> Helper:
    """Give the network namespace of process ``pid`` a way out and its published ports; returns when it works.

    The helper sets up ``eth0`` inside by itself: ``Spec.network`` stays ``None``.

    Args:
        pid: In user and network namespaces that the caller's user made.
        directory: The container's own, for the helper's log and socket.
        ports: From ``ports.parse``.
        marker: For the helper's environment: own ``process`` with this marker in the journal before.
        program: One of the two instead of ``available()``.

    Raises:
        HostError: none is installed, or it failed (with what it said); a port is taken.
    """
    program = program or available()
    if program is None:
        raise HostError(
            "an ordinary user's container has a network only through slirp4netns or pasta, and neither is installed",
            hint="apt-get install slirp4netns; or --network none",
        )
    decided, held = reserve.take(ports)
    for fd in held:  # the helper binds them itself; another program in between makes it fail, with its reason
        os.close(fd)
    environment = {**os.environ, OWNER_VARIABLE: marker} if marker else dict(os.environ)
    start_it = _start_slirp if program == SLIRP else _start_pasta
    return start_it(pid, directory, decided, environment)


def _start_slirp(pid: int, directory: str, ports: list[Port], environment: dict[str, str]) -> Helper:
    ready, ready_end = os.pipe()
    lifeline_end, lifeline = os.pipe()
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # a socket's path is at most 107 bytes long
    options = [
        *("--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp"),
        *(f"--ready-fd={ready_end}", f"--exit-fd={lifeline_end}", f"--api-socket=/proc/self/fd/{place}/{_SOCKET}"),
    ]
    try:
        _remove(f"{directory}/{_SOCKET}")
        passed = (ready_end, lifeline_end, place)
        child = _spawn([SLIRP, *options, str(pid), INTERFACE], directory, environment, passed)
        for fd in (ready_end, lifeline_end):
            os.close(fd)
        helper = Helper(SLIRP, child, ports, lifeline)
        try:
            _await(ready, helper, directory)
            for port in ports:
                _forward(f"/proc/self/fd/{place}/{_SOCKET}", port, helper)
        except BaseException:
            helper.stop()
            raise
    finally:
        os.close(ready)
        os.close(place)
    return helper


def _start_pasta(pid: int, directory: str, ports: list[Port], environment: dict[str, str]) -> Helper:
    fifo = f"{directory}/{_READY}"  # pasta writes its process id there when all is set up
    _remove(fifo)
    os.mkfifo(fifo, 0o600)
    ready = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    options = ["--foreground", "--quiet", "--ipv4-only", "--config-net", "--no-map-gw", "--ns-ifname", INTERFACE]
    for kind, option in ((TCP, "-t"), ("udp", "-u")):
        specs = [_spec(port) for port in ports if port.protocol == kind]
        options += [word for spec in specs or ["none"] for word in (option, spec)]
    options += ["-T", "none", "-U", "none", "--pid", fifo, str(pid)]
    try:
        helper = Helper(PASTA, _spawn([PASTA, *options], directory, environment, ()), ports, None)
        try:
            _await(ready, helper, directory)
        except BaseException:
            helper.stop()
            raise
    finally:
        os.close(ready)
        _remove(fifo)
    return helper


def _spawn(command: list[str], directory: str, environment: dict[str, str], passed: tuple[int, ...]) -> int:
    """Start ``command`` with descriptors ``passed`` under their numbers; what it says goes to the log."""
    log = (1, f"{directory}/{_LOG}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for fd in passed:
        os.set_inheritable(fd, True)
    try:
        return os.posix_spawnp(
            command[0],
            command,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, *log),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsigmask=(),
            setsigdef=(_SIGPIPE,),  # Python ignores it, and pasta takes that for a failure
        )
    except OSError as error:
        raise HostError(f"cannot start {command[0]}: {error.strerror}", hint="apt-get install slirp4netns") from error
    finally:
        for fd in passed:
            os.set_inheritable(fd, False)


def _await(ready: int, helper: Helper, directory: str) -> None:
    """Wait until the helper says through ``ready`` that it works.

    Raises:
        HostError: it ended, or said nothing for ten seconds.
    """
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    poll.register(helper.pidfd, select.POLLIN)
    events = dict(poll.poll(_PATIENCE_SECONDS * 1000))
    if events.get(ready, 0) & select.POLLIN and os.read(ready, 64):
        return
    with open(f"{directory}/{_LOG}", encoding="utf-8", errors="replace") as log:
        said = " ".join(log.read()[-1000:].split())
    what = "failed" if events else f"said nothing for {_PATIENCE_SECONDS} s"
    no_device = "/dev/net/tun must be for everybody: chmod 0666 /dev/net/tun" if "tun" in said else ""
    hint = no_device or "--network none starts without"
    raise HostError(f"{helper.program} {what}: {said or 'no reason given'}", hint=hint)


def _forward(path: str, port: Port, helper: Helper) -> None:
    """Ask slirp4netns to let a port of the host lead inside (slirp4netns(1), "API SOCKET")."""
    arguments = {
        "proto": port.protocol,
        "host_addr": port.host_ip,
        "host_port": port.host_port,
        "guest_addr": helper.address,
        "guest_port": port.container_port,
    }
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        client.settimeout(_PATIENCE_SECONDS)
        client.connect(path)
        client.send(text.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode())
        client.shutdown(_socket.SHUT_WR)
        answer = b""
        while part := client.recv(4096):
            answer += part
    except OSError as error:
        raise HostError(f"{SLIRP} does not answer: {error.strerror or error}") from error
    finally:
        client.close()
    if b'"error"' in answer:
        raise reserve.taken(port, f"another program ({answer.decode(errors='replace').strip()})")


def _spec(port: Port) -> str:
    where = "" if port.host_ip == EVERYWHERE else f"{port.host_ip}/"
    return f"{where}{port.host_port}:{port.container_port}"


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
