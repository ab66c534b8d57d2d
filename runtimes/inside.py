"""Becoming an instance: what a fresh copy of the sandbox does to itself before it executes the payload."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from typing import Any, Final, NoReturn, TypedDict

from runtimes import interface, libc, mounts

GO: Final = b"go"
MAX_ENTRANCES: Final = 16
"""More hierarchies than cgroup version 1 has controllers."""


class Network(TypedDict):
    """IPv4 settings of ``eth0``."""

    address: str
    netmask: str
    gateway: str


class Spec(TypedDict):
    """What to start.

    ``namespaces`` are CLONE_NEW* flags. ``root`` is ``["bind", tree, recursive]`` or ``["overlay",
    lower, upper, work, target]``. ``map_user`` is the outer user and group to become root, in a user
    namespace. With ``born_in_cgroup`` a further descriptor is the directory of a version 2 group. With
    ``wait`` the instance executes nothing before the driver says so. An empty ``command`` proves the set-up
    and exits 0. ``trace`` asks for the time of each step.
    """

    command: list[str]
    environment: dict[str, str]
    namespaces: int
    root: list[Any]
    mounts: list[list[Any]]
    hostname: str | None
    network: Network | None
    cpus: list[int] | None
    map_user: list[int] | None
    born_in_cgroup: bool
    wait: bool
    no_new_privileges: bool
    trace: bool


class _Steps:
    """Remembers what is being done, for an error message, and when, for a trace."""

    def __init__(self, *, trace: bool) -> None:
        self.current = "start"
        self.times: list[tuple[str, float]] = []
        self._trace = trace

    def begin(self, step: str) -> None:
        """``step`` begins; it completes the sentence "cannot …"."""
        self.current = step
        if self._trace:
            self.times.append((step, time.monotonic()))


def become(spec: Spec, console: list[int], setup: socket.socket, alive: int) -> NoReturn:
    """Become the instance; never returns to the caller's loop, whatever happens."""
    steps = _Steps(trace=spec["trace"])
    try:
        _tie(alive, steps)
        _join(setup, steps)
        _set_up(spec, setup, steps)
        _attach(console)
        steps.begin(f"run {spec['command'][0]}" if spec["command"] else "end")
        setup.send(json.dumps({"ready": steps.times}).encode(), socket.MSG_NOSIGNAL)
        if not spec["command"]:
            os._exit(0)
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])
    except (OSError, ValueError) as error:  # a ValueError is a null byte in an argument
        send_error(setup, steps.current, error)
    finally:
        os._exit(127)


def _tie(alive: int, steps: _Steps) -> None:
    steps.begin("tie its life to the sandbox's")
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if _hung_up(alive):  # the parent died before the kernel knew that it matters
        os._exit(127)
    os.setsid()


def _join(setup: socket.socket, steps: _Steps) -> None:
    """Wait until the driver has made what is needed; enter version 1 cgroups by the ``tasks`` files it hands over.

    A single thread that moves itself this way spares the kernel the lock over all thread groups, whose first
    taker waits for a grace period: 0.06 ms instead of 7 (Linux 5.3, "cgroup: optimize single thread migration").
    """
    steps.begin("wait for its directories and cgroups")
    word, fds, _, _ = socket.recv_fds(setup, len(GO), MAX_ENTRANCES, socket.MSG_CMSG_CLOEXEC)
    if word != GO:
        os._exit(127)
    steps.begin("join its cgroups")
    for fd in fds:
        os.write(fd, b"0")


def _set_up(spec: Spec, setup: socket.socket, steps: _Steps) -> None:
    if spec["map_user"] is not None:
        steps.begin("map its user")
        _map_user(*spec["map_user"])
    os.umask(0)
    steps.begin("make its mounts private")
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    _make_root(spec, steps)
    if spec["hostname"] is not None:
        steps.begin("set its host name")
        libc.sethostname(spec["hostname"])
    if spec["wait"]:
        steps.begin("wait for its network")
        if setup.recv(len(GO)) != GO:
            os._exit(127)
    if spec["namespaces"] & libc.CLONE_NEWNET:
        _set_up_network(spec["network"], steps)
    _drop(spec, steps)


def _make_root(spec: Spec, steps: _Steps) -> None:
    kind, *arguments = spec["root"]
    steps.begin(f"mount its root ({kind} of {arguments[0]})")
    if kind == "bind":
        root = mounts.open_bind_root(arguments[0], recursive=arguments[1])
    else:
        root = mounts.open_overlay_root(*arguments)
    for operation in spec["mounts"]:
        steps.begin(mounts.describe(operation))
        mounts.perform(root, operation)
    steps.begin("enter its root")
    mounts.enter_root(root)


def _set_up_network(network: Network | None, steps: _Steps) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        steps.begin("set up its loopback interface")
        interface.bring_up("lo", control)
        if network is not None:
            steps.begin("set up its network interface")
            interface.set_address("eth0", network["address"], network["netmask"], control)
            interface.bring_up("eth0", control)
            interface.set_default_route(network["gateway"], control)


def _drop(spec: Spec, steps: _Steps) -> None:
    """Leave the set-up's special state, last of all."""
    steps.begin("leave the set-up")
    if spec["namespaces"] & libc.CLONE_NEWCGROUP:
        libc.unshare(libc.CLONE_NEWCGROUP)  # not earlier: the cgroups it is in now become its root
    if spec["cpus"] is not None:
        os.sched_setaffinity(0, spec["cpus"])
    if spec["map_user"] is None:
        os.setgroups([])
    if spec["no_new_privileges"]:
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o022)


def _attach(console: list[int]) -> None:
    """Make the console descriptors 0, 1 and 2; everything else closes on exec."""
    stdin, stdout = console
    for number, fd in ((0, stdin), (1, stdout), (2, stdout)):
        os.dup2(fd, number)
    libc.close_range(3, 0x7FFF_FFFF, libc.CLOSE_RANGE_CLOEXEC)


def _map_user(uid: int, gid: int) -> None:
    """Make ``uid`` and ``gid`` root in this user namespace (user_namespaces(7))."""
    for name, content in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, content.encode())
        os.close(fd)


def _hung_up(alive: int) -> bool:
    poll = select.poll()
    poll.register(alive, 0)
    return bool(poll.poll(0))


def send_error(setup: socket.socket, step: str, error: OSError | ValueError) -> None:
    """Tell the driver that ``step``, which completes "cannot …", failed."""
    reason = error.strerror if isinstance(error, OSError) else None
    answer = {"error": reason or str(error), "step": step}
    with contextlib.suppress(BrokenPipeError):  # the driver is gone and nobody is left to tell
        setup.send(json.dumps(answer).encode(), socket.MSG_NOSIGNAL)
