"""The sandbox: a small program that forks instances, for a driver that is too big to fork.

It is started once per driver and takes requests over a socket. For each it makes one clone3(2) with
every namespace, and the copy sets itself up and executes the payload. It imports nothing heavy, so that
its fork is cheap and its memory small. When the driver's process dies, however it dies, the
socket closes and every instance is killed; when the sandbox itself dies, the kernel kills each
instance's first process.

A request is one message: a ``Spec`` as JSON with descriptors: standard input, standard output, a pipe
for the end, a socket for the set-up, and where it applies the cgroup to be born in. Over the set-up socket
the driver gets ``{"pid": …}`` with a pidfd, sends the entrances of the cgroups to join, and gets
``{"ready": [[step, monotonic seconds], …]}`` or ``{"error": …}``, then the end of file at exec. Over the pipe
for the end it gets ``{"status": …, "at_seconds": …}``.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import time
from typing import Final

from runtimes import libc
from runtimes.inside import Spec, become, send_error
from runtimes.members import Namespace

MAX_REQUEST_BYTES: Final = 192 * 1024
"""A sequenced packet must fit the socket's send buffer (socket(7), wmem_default)."""
MAX_DESCRIPTORS: Final = 16
KILL_SECONDS: Final = 10.0


def main(control: int) -> None:
    """Serve requests on descriptor ``control`` until its other end closes."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)  # Python ignores SIGPIPE; an instance must not inherit that
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(libc.PR_SET_NAME, ctypes.create_string_buffer(b"isomark-sandbox"))
    os.umask(0o022)
    gc.freeze()
    gc.disable()  # a collection in a copy would make it copy every page that holds an object
    with socket.socket(fileno=control) as connection:
        Sandbox(connection).serve()


class _Running:
    """A started instance as its parent sees it."""

    def __init__(self, pid: int, pidfd: int, status: int, namespace: Namespace | None) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.status = status
        self.namespace = namespace

    def ended(self, status: int) -> None:
        """Kill what a bare process left, then tell the driver."""
        at_seconds = time.monotonic()
        if self.namespace is not None:
            self.namespace.kill(KILL_SECONDS)
            self.namespace.close()
        answer = {"status": os.waitstatus_to_exitcode(status), "at_seconds": at_seconds}
        with contextlib.suppress(BrokenPipeError):  # nobody wants to know
            os.write(self.status, json.dumps(answer).encode())
        os.close(self.status)
        os.close(self.pidfd)


class Sandbox:
    """Takes requests and reaps."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._running: dict[int, _Running] = {}
        self._alive = os.pipe()  # the write end closes with this process: a copy can tell that its parent is gone
        self._child_ended, self._wake = os.pipe()
        os.set_blocking(self._child_ended, False)
        os.set_blocking(self._wake, False)

    def serve(self) -> None:
        """Serve until the driver is gone, then end every instance."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._child_ended, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._child_ended in ready:
                os.read(self._child_ended, 4096)
                self._reap()
            if self._connection.fileno() in ready and not self._take_request():
                break
        self._end_all()

    def _take_request(self) -> bool:
        request, fds = _receive(self._connection, MAX_REQUEST_BYTES)
        if not request:
            return False
        spec: Spec = json.loads(request)
        console, status, setup = fds[:2], fds[2], socket.socket(fileno=fds[3])
        birthplace = fds[4] if spec["born_in_cgroup"] else None
        with setup:
            try:
                pid, pidfd = libc.clone3(spec["namespaces"] & ~libc.CLONE_NEWCGROUP, signal.SIGCHLD, birthplace)
            except OSError as error:
                send_error(setup, "create its namespaces", error)
                os.close(status)
            else:
                if pid == 0:
                    self._leave()
                    become(spec, console, setup, self._alive[0])
                bare = not spec["namespaces"] & libc.CLONE_NEWPID
                self._started(_Running(pid, pidfd, status, _hold(pid) if bare else None), setup)
        for fd in (*console, *fds[4:]):
            os.close(fd)
        return True

    def _leave(self) -> None:
        """Give up, in a copy, what makes the sandbox."""
        os.close(self._alive[1])
        signal.set_wakeup_fd(-1)

    def _started(self, running: _Running, setup: socket.socket) -> None:
        self._running[running.pid] = running
        try:
            socket.send_fds(setup, [json.dumps({"pid": running.pid}).encode()], [running.pidfd], socket.MSG_NOSIGNAL)
        except OSError:  # nobody waits for it any more
            signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._running:  # others are orphans of a bare process, which this process adopts
                self._running.pop(pid).ended(status)

    def _end_all(self) -> None:
        for running in self._running.values():
            signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)
        deadline = time.monotonic() + KILL_SECONDS
        while self._running and time.monotonic() < deadline:
            time.sleep(0.001)
            self._reap()


def _hold(pid: int) -> Namespace | None:
    try:
        return Namespace(pid, "mnt")
    except OSError:  # its set-up failed so fast that it is gone: then it left nothing
        return None


def _receive(connection: socket.socket, size: int) -> tuple[bytes, list[int]]:
    request, ancillary, _, _ = connection.recvmsg(size, socket.CMSG_SPACE(4 * MAX_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data)
    return request, list(fds)
