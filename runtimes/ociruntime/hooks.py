"""Hooks: programs of the engine's that are run around a container's life, with its state on standard input.

runtime-spec 1.2, config.md, "POSIX-platform Hooks", and runtime.md, "Lifecycle".
"""

from __future__ import annotations

import _signal
import os
import select
import time

from bench.errors import InstanceError
from runtimes import libc
from runtimes.ociruntime import documents
from runtimes.ociruntime.node import MAX_UINT32, Node
from runtimes.ociruntime.process import variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final

POINTS: Final = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
"""In the order in which they come."""

_TAIL_BYTES: Final = 2048


def parse(document: Node) -> dict[str, list[list[Any]]]:
    """Read the hooks: point -> its hooks in order.

    Raises:
        UsageError: with the path of what is wrong.
    """
    node = document.get("hooks")
    if node is None:
        return {}
    found = {point: [_hook(each) for each in node.elements(point)] for point in POINTS}
    return {point: hooks for point, hooks in found.items() if hooks}


def _hook(node: Node) -> list[Any]:
    """``[path, arguments, environment or None, timeout in seconds or None]``."""
    path = node.need("path").absolute()
    arguments = node.texts_of("args") or [path]
    environment = None if node.get("env") is None else dict(variable(each) for each in node.elements("env"))
    timeout = node.integer_of("timeout", 1, MAX_UINT32)
    return [path, arguments, environment, timeout]


def run_all(point: str, hooks: Sequence[Sequence[Any]], state: Mapping[str, Any]) -> None:
    """Run the hooks of one point, in order; the first that fails ends it.

    Raises:
        InstanceError: naming the hook, with what it said.
    """
    told = failure(point, hooks, state)
    if told is not None:
        raise InstanceError(told)


def failure(point: str, hooks: Sequence[Sequence[Any]], state: Mapping[str, Any]) -> str | None:
    """Run the hooks of one point, in order, until one fails; how it failed. For the forked child as well."""
    for number, (path, arguments, environment, timeout) in enumerate(hooks):
        inherited = dict(os.environ) if environment is None else environment  # as runc
        try:
            told = run(path, arguments, inherited, timeout, documents.dumps(state).encode())
        except OSError as error:
            told = f"cannot be executed: {error.strerror}"
        if told is not None:
            return f"hooks.{point}[{number}] ({path}) {told}"
    return None


def run(
    path: str, arguments: Sequence[str], environment: Mapping[str, str], timeout: int | None, state: bytes
) -> str | None:  # fmt: skip
    """Run one program with ``state`` on standard input; ``None``, or how it failed.

    It dies with this process, and its descriptors are its own three.

    Raises:
        OSError: it cannot be executed.
    """
    stdin = _memory_file(state)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        pid, pidfd = _spawn(path, arguments, environment, stdin, writing)
    finally:
        os.close(stdin)
        os.close(writing)
    try:
        said, in_time = _listen(reading, pidfd, None if timeout is None else time.monotonic() + timeout)
        if not in_time:
            _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(reading)
        os.close(pidfd)
    tail = said.decode(errors="replace").strip().replace("\n", " · ")
    told = f": {tail}" if tail else ""
    if not in_time:
        return f"did not end within {timeout} s{told}"
    if status == 0:
        return None
    return f"was killed by signal {-status}{told}" if status < 0 else f"ended with status {status}{told}"


def _spawn(
    path: str, arguments: Sequence[str], environment: Mapping[str, str], stdin: int, writing: int
) -> tuple[int, int]:  # fmt: skip
    """Fork and execute; the pid and a pidfd. The reason for a failed execution arrives over a pipe, as an errno."""
    failed, fail = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid, pidfd = libc.clone3(0, _signal.SIGCHLD)
    if pid == 0:
        try:
            libc.prctl(libc.PR_SET_PDEATHSIG, _signal.SIGKILL)
            if os.getppid() != parent and os.getppid() != 0:
                os._exit(127)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
            _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
            for number, fd in ((0, stdin), (1, writing), (2, writing)):
                os.dup2(fd, number)
            libc.close_range(3, 0x7FFF_FFFF, libc.CLOSE_RANGE_CLOEXEC)
            os.execve(path, list(arguments), dict(environment))
        except (OSError, ValueError) as error:
            os.write(fail, str(getattr(error, "errno", 22) or 22).encode())
        finally:
            os._exit(127)
    os.close(fail)
    errno = os.read(failed, 16)
    os.close(failed)
    if errno:
        os.waitpid(pid, 0)
        os.close(pidfd)
        raise OSError(int(errno), os.strerror(int(errno)))
    return pid, pidfd


def _listen(reading: int, pidfd: int, deadline: float | None) -> tuple[bytes, bool]:
    """The end of what it says until it has ended, and whether it ended before ``deadline``."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(reading, select.POLLIN)
    os.set_blocking(reading, False)
    said = b""
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = [fd for fd, _ in poll.poll(left)]
        if reading in ready:
            try:
                data = os.read(reading, 65536)
            except BlockingIOError:
                data = b""
            said = (said + data)[-_TAIL_BYTES:]
            if not data:
                poll.unregister(reading)
        elif pidfd in ready:
            return said, True
        if not ready:
            return said, False


def _memory_file(content: bytes) -> int:
    fd = os.memfd_create("state", os.MFD_CLOEXEC)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
