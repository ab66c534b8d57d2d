"""Starting an instance from this very process, which must have one thread and should be small.

    newborn = bear(spec, (0, 1, 2))
    newborn.provide()          # its cgroups are made; on version 1 their ``tasks`` files go along
    newborn.release()          # with ``wait``: its network is connected
    newborn.await_ready()      # its command runs, or with ``hold`` waits for its FIFO

There is no process in between: who calls is its parent and reaps it.
"""

from __future__ import annotations

import _signal
import _socket
import os

from bench.errors import HostError, InstanceError
from runtimes import kernel_files, libc, steps
from runtimes.inside import Nursery, become
from runtimes.security import seccomp
from runtimes.steps import StepFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final, NoReturn

    from runtimes.security.seccomp import Program
    from runtimes.spec import Spec

SETUP_SECONDS: Final = 30.0
"""Longest time for one step of a set-up: a host so slow is not fit to measure on."""


def plain() -> Spec:
    """A ``Spec`` with nothing asked for: this process's own namespaces, root and privileges, and no command."""
    return {
        "command": [],
        "environment": {},
        "cwd": "/",
        "user": {"name": None, "uid": os.geteuid(), "gid": os.getegid(), "groups": [], "umask": 0o022},
        "namespaces": 0,
        "join": [],
        "uid_map": None,
        "gid_map": None,
        "time_offsets": None,
        "root": ["joined"],
        "root_readonly": False,
        "propagation": libc.MS_REC | libc.MS_PRIVATE,
        "mounts": [],
        "hostname": None,
        "domainname": None,
        "network": None,
        "sysctls": {},
        "rlimits": [],
        "cpus": None,
        "oom_score_adj": None,
        "capabilities": None,
        "seccomp": None,
        "apparmor": None,
        "no_new_privileges": False,
        "born_in_cgroup": False,
        "wait": False,
        "hold": None,
        "terminal": False,
        "terminal_size": None,
        "preserve": 0,
        "tie": False,
        "trace": False,
    }


class Ready:
    """A set-up's end.

    ``steps`` are those traced, with when each began on CLOCK_MONOTONIC; ``terminal`` is the master, the caller's to
    close.
    """

    __slots__ = ("steps", "terminal")

    def __init__(self, times: list[tuple[str, float]], terminal: int | None) -> None:
        self.steps = times
        self.terminal = terminal


class Newborn:
    """An instance between its birth and its readiness; owns ``pidfd``, which ``close`` gives back."""

    __slots__ = ("_hold", "_setup", "failed", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, setup: _socket.socket, *, hold: bool) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.failed: StepFailed | None = None
        self._setup = setup
        self._hold = hold

    def provide(self, entrances: Sequence[int] = (), root: int | None = None) -> None:
        """Tell it that its directories and cgroups are there.

        ``entrances`` are ``tasks`` files to enter by, ``root`` is what ``runtimes.detached`` made; they stay the
        caller's.
        """
        if root is None:
            self._go(steps.GO, entrances)
        else:
            self._go(steps.GO_WITH_ROOT, [*entrances, root])

    def release(self) -> None:
        """Let a ``wait``ing instance go on."""
        self._go(steps.GO, ())

    def await_ready(self) -> Ready:
        """Wait until the command runs, or with ``hold`` is about to.

        Raises:
            InstanceError: a step failed: ``failed`` has it with its errno. The process has been reaped.
        """
        times: list[tuple[str, float]] | None = None
        terminal: int | None = None
        try:
            while True:
                data, fds = steps.receive(self._setup)
                kind, fields = steps.decode(data)
                if kind == "terminal":
                    terminal = fds[0]
                elif kind == "ready":
                    times = steps.decode_times(fields)
                elif kind == "error":
                    self.failed = steps.decode_error(fields)
                    raise self.failed.as_error()
                if times is not None and (self._hold or not data):
                    return Ready(times, terminal)
                if not data:
                    raise self._died()
        except BaseException as error:
            self.abandon()
            if terminal is not None:
                os.close(terminal)
            if isinstance(error, TimeoutError):
                raise StepFailed("set it up", f"it took over {SETUP_SECONDS:g} s", None).as_error() from error
            raise
        finally:
            self._setup.close()

    def abandon(self) -> None:
        """Kill and reap it, in whatever state it is; idempotent."""
        self._setup.close()
        if self.pidfd != -1:
            try:
                _signal.pidfd_send_signal(self.pidfd, _signal.SIGKILL)
                os.waitpid(self.pid, 0)
            except (ProcessLookupError, ChildProcessError):  # reaped already
                return
            finally:
                self.close()

    def close(self) -> None:
        """Give ``pidfd`` back; the instance lives on. Idempotent."""
        if self.pidfd != -1:
            os.close(self.pidfd)
            self.pidfd = -1

    def _go(self, word: bytes, fds: Sequence[int]) -> None:
        try:
            steps.send(self._setup, word, fds)
        except (BrokenPipeError, ConnectionResetError):  # it has failed already; await_ready says why
            return

    def _died(self) -> InstanceError:
        """It died in the middle, without a word."""
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"exited with status {code}" if code >= 0 else f"was killed by signal {-code}"
        return InstanceError(f"the instance {how} during its set-up", hint="is its memory limit too low?")


def bear(
    spec: Spec,
    stdio: tuple[int, int, int],
    *,
    birthplace: int | None = None,
    at_last: Callable[[], None] | None = None,
) -> Newborn:
    """Make the instance's first process. It does nothing before it is provided for.

    ``stdio`` become its descriptors 0, 1 and 2 (unless it has a terminal) and stay the caller's; ``birthplace`` is the
    directory of the version 2 cgroup to be born in. ``at_last`` is called inside when only the execution is left, after
    ``hold``; it must import nothing.

    Raises:
        InstanceError: its namespaces cannot be made or entered.
    """
    for fd in range(3, 3 + spec["preserve"]):
        os.fstat(fd)  # or a descriptor of ours would take its place
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    ours.settimeout(SETUP_SECONDS)
    proc = -1
    try:
        proc = kernel_files.open_proc()
        # with the other end closed in the copy, its set-up socket hangs up when this process dies
        nursery = Nursery(theirs, stdio, proc, theirs.fileno())
        nursery.at_last = at_last
        pid, pidfd = bear_copy(spec, birthplace, nursery, ours.close)
    except StepFailed as failed:
        ours.close()
        raise failed.as_error() from failed
    finally:
        theirs.close()
        if proc != -1:
            os.close(proc)
    return Newborn(pid, pidfd, ours, hold=spec["hold"] is not None)


def bear_copy(spec: Spec, birthplace: int | None, nursery: Nursery, begin: Callable[[], None]) -> tuple[int, int]:
    """Make the copy of this process that becomes the instance, and return its pid and pidfd.

    ``begin`` gives up in the copy what is its parent's.

    Raises:
        StepFailed: its namespaces cannot be made or entered; no process is left.
    """

    def live() -> NoReturn:
        become(spec, nursery)

    if spec["seccomp"] is not None:
        nursery.filter = _read_filter(spec["seccomp"])
    flags = spec["namespaces"] & ~libc.CLONE_NEWCGROUP
    if spec["join"] or spec["time_offsets"] is not None:
        from runtimes.entering import bear_through_copy  # here and below: not on the way of who needs none of it

        return bear_through_copy(spec, flags, birthplace, nursery.proc, begin, live)
    mapped, tell = os.pipe() if spec["uid_map"] is not None else (-1, -1)
    try:
        try:
            pid, pidfd = libc.clone3(flags, _signal.SIGCHLD, birthplace)
        except OSError as error:
            raise StepFailed("create its namespaces", error.strerror or str(error), error.errno) from error
        if pid == 0:
            begin()
            if tell != -1:
                os.close(tell)
                nursery.mapped = mapped
            live()
        if tell != -1:
            _map(spec, pid, pidfd, tell)
    finally:
        for fd in {mapped, tell} - {-1}:
            os.close(fd)
    return pid, pidfd


def _read_filter(path: str) -> Program:
    try:
        return seccomp.read(path)
    except HostError as error:
        raise StepFailed("filter its system calls", error.message, None) from error


def _map(spec: Spec, pid: int, pidfd: int, tell: int) -> None:
    """Map the users of the copy, which waits for a byte through ``tell``."""
    from runtimes.usermap import map_users

    try:
        map_users(pid, spec)
        os.write(tell, b"+")
    except (StepFailed, OSError) as error:
        _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
        if isinstance(error, OSError):
            raise StepFailed("map its users", error.strerror or str(error), error.errno) from error
        raise
