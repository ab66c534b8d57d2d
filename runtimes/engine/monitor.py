"""The monitor: one small process for each running container, which starts it, keeps its log and exit status, and reaps.

It is forked by the command that starts the container and lives until the container has ended for good: there is no
daemon. It alone writes the container's state meanwhile. When it is killed the kernel kills the container with it, and
the next command, or ``isomark clean``, notices (``runtimes.engine.removal``).
"""

from __future__ import annotations

import _signal
import os
import sys

from bench.errors import IsomarkError
from runtimes.engine import wire
from runtimes.engine.container import cannot_write
from runtimes.engine.failure import ENGINE_FAILED
from runtimes.engine.lives import Lives
from runtimes.engine.service import failure_of
from runtimes.steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 - a class
    from typing import Any

    from runtimes.engine.container import Container

_CRASH_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


def fork(container: Container, starter: Socket, near: Socket, lock: int, request: dict[str, Any]) -> int:
    """Fork the monitor, which reports to ``starter`` and does ``request`` for it; return its process id.

    ``near`` is the caller's end; ``lock`` is the monitor's lock, held already, so that there is no moment at which
    the container is starting and looks dead.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        doing = Steps(trace=bool(request.get("trace")))
        doing.begin("become its monitor")
        near.close()
        _detach(container, {starter.fileno(), lock})
        lives = Lives(container, starter, lock, doing)
    except (IsomarkError, OSError) as error:  # nothing has begun
        os.close(lock)  # first: who hears may remove the container
        _refuse(container, starter, error)
    else:
        lives.run(request)
        status = 0
    finally:  # nothing of the command that forked may run in this process
        if status and sys.exc_info()[1] is not None:
            sys.excepthook(*sys.exc_info())
        os._exit(status)


def _refuse(container: Container, starter: Socket, error: IsomarkError | OSError) -> None:
    told = error if isinstance(error, IsomarkError) else cannot_write(container.path, error)
    starter.setblocking(True)
    try:
        wire.send(starter, wire.FAILED, failure_of(told, ENGINE_FAILED))
    except OSError:  # nobody waits for it
        return


def _detach(container: Container, keep: set[int]) -> None:
    """Leave the command's session, directory, terminal and descriptors; complaints go to the container's directory."""
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    crash = os.open(f"{container.path}/crash", _CRASH_FLAGS, 0o600)
    for number, fd in ((0, null), (1, null), (2, crash)):
        os.dup2(fd, number)
    first = 3
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, max(first, 64))
    for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGWINCH", "SIGTTOU", "SIGTTIN", "SIGTSTP"):
        _signal.signal(getattr(_signal, name), _signal.SIG_IGN)
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCONT"):
        _signal.signal(getattr(_signal, name), _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
