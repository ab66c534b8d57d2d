"""The sandbox: a small program that forks instances, for a driver that is too big to fork.

It is started once per driver and takes requests over a socket. For each it makes one clone3(2) with
every namespace, and the copy sets itself up and executes the payload. It imports nothing heavy, so that
its fork is cheap and its memory small. When the driver's process dies, however it dies, the
socket closes and every instance is killed; when the sandbox itself dies, the kernel kills each
instance's first process.

A request is one message: a ``Spec`` by marshal with descriptors: standard input, output and error, a pipe
for the end, a socket for the set-up, and where it applies the cgroup to be born in. Over the set-up socket
the driver gets the pid with a pidfd, then sends and gets what ``runtimes.steps`` and ``runtimes.birth`` say, then the
end of file at exec. Over the pipe for the end it gets ``STATUS AT_SECONDS``.
"""

from __future__ import annotations

import _signal
import _socket
import gc
import marshal
import os
import select
import time

from runtimes import kernel_files, libc, steps
from runtimes.birth import bear_copy
from runtimes.inside import Nursery
from runtimes.members import Namespace
from runtimes.steps import StepFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from runtimes.spec import Spec

MAX_REQUEST_BYTES: Final = 192 * 1024
"""A sequenced packet must fit the socket's send buffer (socket(7), wmem_default)."""
KILL_SECONDS: Final = 10.0


def main(control: int) -> None:
    """Serve requests on descriptor ``control`` until its other end closes."""
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    libc.set_name("isomark-sandbox")
    os.umask(0o022)
    gc.freeze()
    gc.disable()  # a collection in a copy would make it copy every page that holds an object
    Sandbox(_socket.socket(fileno=control)).serve()


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
        try:
            os.write(self.status, b"%d %.9f" % (os.waitstatus_to_exitcode(status), at_seconds))
        except BrokenPipeError:  # nobody wants to know
            return
        finally:
            os.close(self.status)
            os.close(self.pidfd)


class Sandbox:
    """Takes requests and reaps."""

    def __init__(self, connection: _socket.socket) -> None:
        self._connection = connection
        self._running: dict[int, _Running] = {}
        self._proc = kernel_files.open_proc()
        self._alive = os.pipe()  # the write end closes with this process: a copy can tell that its parent is gone
        self._child_ended, self._wake = os.pipe()
        os.set_blocking(self._child_ended, False)
        os.set_blocking(self._wake, False)

    def serve(self) -> None:
        """Serve until the driver is gone, then end every instance."""
        _signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
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
        request, fds = steps.receive(self._connection, MAX_REQUEST_BYTES)
        if not request:
            return False
        spec: Spec = marshal.loads(request)
        stdio, status, setup = fds[:3], fds[3], _socket.socket(fileno=fds[4])
        try:
            nursery = Nursery(setup, stdio, self._proc, self._alive[0])
            pid, pidfd = bear_copy(spec, fds[5] if spec["born_in_cgroup"] else None, nursery, self._leave)
        except StepFailed as failed:
            steps.send_error(setup, failed)
            os.close(status)
        else:
            bare = not spec["namespaces"] & libc.CLONE_NEWPID
            self._started(_Running(pid, pidfd, status, _hold(pid) if bare else None), setup)
        finally:
            setup.close()
            for fd in (*stdio, *fds[5:]):
                os.close(fd)
        return True

    def _leave(self) -> None:
        """Give up, in a copy, what makes the sandbox."""
        os.close(self._alive[1])
        _signal.set_wakeup_fd(-1)

    def _started(self, running: _Running, setup: _socket.socket) -> None:
        self._running[running.pid] = running
        try:
            steps.send(setup, steps.encode_pid(running.pid), [running.pidfd])
        except (BrokenPipeError, ConnectionResetError):  # nobody waits for it any more
            _signal.pidfd_send_signal(running.pidfd, _signal.SIGKILL)

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
            _signal.pidfd_send_signal(running.pidfd, _signal.SIGKILL)
        deadline = time.monotonic() + KILL_SECONDS
        while self._running and time.monotonic() < deadline:
            time.sleep(0.001)
            self._reap()


def _hold(pid: int) -> Namespace | None:
    try:
        return Namespace(pid, "mnt")
    except OSError:  # its set-up failed so fast that it is gone: then it left nothing
        return None
