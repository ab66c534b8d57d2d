"""The driver's side of the sandbox: starting the helper, asking it, and holding what it started."""

from __future__ import annotations

import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import HostError, InstanceError
from bench.journal import OWNER_VARIABLE
from runtimes import steps
from runtimes.birth import SETUP_SECONDS
from runtimes.sandbox import MAX_REQUEST_BYTES
from runtimes.spec import Spec

ABANDON_SECONDS: Final = 10.0

_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from runtimes.sandbox import main; main(int(sys.argv[2]))"
)
_SOURCES: Final = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True)
class Ended:
    """How an instance's first process ended.

    ``status`` is as in ``subprocess``, negative for a signal; ``None`` if the sandbox died and nobody saw it.
    """

    status: int | None
    at_seconds: float

    def __str__(self) -> str:
        if self.status is None:
            return "ended unseen, because the sandbox did"
        if self.status < 0:
            return f"killed by signal {-self.status} ({signal.Signals(-self.status).name})"
        return f"exited with status {self.status}"


class Child:
    """An instance's first process, set up by the sandbox; owns its descriptors.

    ``read_fd`` and ``write_fd`` are the console's host ends and are the caller's to close.
    """

    def __init__(self, read_fd: int, write_fd: int, status: int, setup: socket.socket) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.pid = 0
        self.steps: list[tuple[str, float]] = []
        self.ended: Ended | None = None
        self._pidfd = -1
        self._status = status
        self._setup = setup
        self._ready = False
        self._error: InstanceError | None = None

    def await_pid(self) -> None:
        """Wait until the process exists.

        Raises:
            InstanceError: it could not be created.
        """
        while self.pid == 0:
            heard = self._hear()
            self._raise_error()
            if not heard:
                raise InstanceError("the sandbox ended", hint="the kernel's log may say why (dmesg)")

    def provide(self, entrances: Sequence[int] = (), root: int | None = None) -> None:
        """Tell it that its directories and cgroups are there; as ``runtimes.birth.Newborn``."""
        try:
            if root is None:
                steps.send(self._setup, steps.GO, entrances)
            else:
                steps.send(self._setup, steps.GO_WITH_ROOT, [*entrances, root])
        except BrokenPipeError:  # it has failed already; await_exec says why
            return

    def release(self) -> None:
        """Let a ``wait``ing instance go on."""
        try:
            steps.send(self._setup, steps.GO)
        except BrokenPipeError:  # it has failed already; await_exec says why
            return

    def await_exec(self) -> None:
        """Wait until the payload's program runs.

        Raises:
            InstanceError: the set-up failed, with the step that did.
        """
        while self._hear():
            self._raise_error()
        self._setup.close()
        if not self._ready:
            ended = self.wait(1.0)
            raise InstanceError(
                f"the instance {ended or 'ended'} during its set-up", hint="is its memory limit too low?"
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process is gone."""
        if self._pidfd != -1:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                return

    def wait(self, timeout_seconds: float) -> Ended | None:
        """Return how it ended, or ``None`` if it has not within ``timeout_seconds``."""
        if self.ended is None and self._status != -1:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            if poll.poll(timeout_seconds * 1000):
                answer = os.read(self._status, 4096).split()
                self.ended = Ended(int(answer[0]), float(answer[1])) if answer else Ended(None, time.monotonic())
        return self.ended

    def abandon(self) -> None:
        """Kill it, in whatever state it is, and give the descriptors back, except the console's; idempotent."""
        self.signal(signal.SIGKILL)
        self._setup.close()  # ends an instance that waits for its release
        self.wait(ABANDON_SECONDS)
        self._setup.close()
        for fd in {self._status, self._pidfd} - {-1}:
            os.close(fd)
        self._status = self._pidfd = -1

    def _hear(self) -> bool:
        """Take one message; false at the end of file. The copy's may overtake the original's."""
        try:
            data, fds = steps.receive(self._setup)
        except TimeoutError as error:
            raise InstanceError(f"the set-up took over {SETUP_SECONDS:g} s", hint="is the host overloaded?") from error
        if not data:
            return False
        kind, fields = steps.decode(data)
        if kind == "pid":
            self.pid, self._pidfd = int(fields[0]), fds[0]
        elif kind == "ready":
            self.steps, self._ready = steps.decode_times(fields), True
        else:
            self._error = steps.decode_error(fields).as_error()
        return True

    def _raise_error(self) -> None:
        if self._error is not None:
            self.wait(1.0)  # it is about to exit: leave nothing of it
            raise self._error


class Spawner:
    """Starts the sandbox helper when first needed and hands requests to it.

    ``owner`` marks every process in its environment (``ISOMARK_OWNER``).
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._helper: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The helper's process id, once it runs."""
        return self._helper.pid if self._helper else None

    def open(self) -> None:
        """Start the helper, unless it runs.

        Raises:
            HostError: it does not start.
        """
        if self._helper is not None and self._helper.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._helper = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _PROGRAM, _SOURCES, str(theirs.fileno())],
                    env={OWNER_VARIABLE: self._owner},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    cwd="/",
                )
            except OSError as error:
                ours.close()
                raise HostError(f"cannot start {sys.executable}: {error.strerror}") from error
        self._control = ours

    def spawn(self, spec: Spec, birthplace: int | None = None) -> Child:
        """Ask for an instance and return at once: it does not exist before ``await_pid``.

        It does nothing before it is provided for. ``birthplace`` is the descriptor that ``Spec`` speaks of; it stays
        the caller's.

        Raises:
            InstanceError: the request cannot be made.
            HostError: the helper does not start, or descriptors are used up.
        """
        self.open()
        assert self._control is not None
        request = marshal.dumps(spec)  # type: ignore[arg-type]
        born = [] if birthplace is None else [birthplace]
        if len(request) > MAX_REQUEST_BYTES:
            raise InstanceError(
                "the command and environment are too long", hint=f"at most {MAX_REQUEST_BYTES >> 10} KiB"
            )
        with ExitStack() as undo, ExitStack() as theirs:
            try:
                child, fds = _descriptors(undo, theirs)
                steps.send(self._control, request, [*fds, *born])
            except ConnectionError as error:
                raise InstanceError("the sandbox ended", hint="the next start makes a new one") from error
            except OSError as error:
                raise HostError(f"cannot start an instance: {error.strerror}", hint="raise ulimit -n") from error
            undo.pop_all()
        return child

    def close(self) -> None:
        """End the helper and every instance that still runs; idempotent."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._helper is not None:
            try:
                self._helper.wait(SETUP_SECONDS)
            except subprocess.TimeoutExpired:
                self._helper.kill()
                self._helper.wait()
            self._helper = None


def _descriptors(undo: ExitStack, theirs: ExitStack) -> tuple[Child, Sequence[int]]:
    """Make the four channels of an instance; the far ends close with ``theirs``, all else with ``undo``."""
    pipes: list[tuple[int, int]] = []
    for near in (1, 0, 0):  # standard input is written here; output and status are read
        pipe = os.pipe()
        undo.callback(os.close, pipe[near])
        theirs.callback(os.close, pipe[1 - near])
        pipes.append(pipe)
    (stdin, to_stdin), (from_stdout, stdout), (from_status, status) = pipes
    ours, setup = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.enter_context(setup)
    ours.settimeout(SETUP_SECONDS)
    undo.enter_context(ours)
    child = Child(from_stdout, to_stdin, from_status, ours)
    return child, (stdin, stdout, stdout, status, setup.fileno())
