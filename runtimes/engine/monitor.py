"""The monitor: one small process for each running container, which starts it, keeps its log and exit status, and reaps.

It is forked by the command that starts the container and lives until the container has ended for good: there is no
daemon. It alone writes the container's state meanwhile. When it is killed the kernel kills the container with it, and
the next command, or ``isomark clean``, notices (``runtimes.engine.removal``).
"""

from __future__ import annotations

import _signal
import _socket
import errno
import os
import sys
import time

from bench.errors import HostError, IsomarkError
from runtimes import usernamespace
from runtimes.engine import wire
from runtimes.engine.clock import now
from runtimes.engine.container import cannot_write
from runtimes.engine.files import remove_tree
from runtimes.engine.journal import Journal
from runtimes.engine.launch import Launch
from runtimes.engine.log import LogWriter
from runtimes.engine.loop import READ, Loop
from runtimes.engine.plan import FILES
from runtimes.engine.process import Process
from runtimes.engine.relay import Client, Relay
from runtimes.engine.removal import erase
from runtimes.steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 - a class
    from typing import Any

    from runtimes.engine.container import Container
    from runtimes.spec import Spec

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 10.0
"""A container that ran so long starts its back-off anew (moby, restartmanager)."""
LAST_WORDS_SECONDS = 1.0
"""How long the output may stay open after the last process, when it has no PID namespace of its own."""
GOODBYE_SECONDS = 5.0
BUSY_SECONDS = 0.1
"""How long it does not listen when it can open no more files."""
ENGINE_FAILED = 125
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
        monitor = Monitor(container, starter, lock, doing)
    except (IsomarkError, OSError) as error:  # nothing has begun
        os.close(lock)  # first: who hears may remove the container
        _refuse(container, starter, error)
    else:
        monitor.run(request)
        status = 0
    finally:  # nothing of the command that forked may run in this process
        if status and sys.exc_info()[1] is not None:
            sys.excepthook(*sys.exc_info())
        os._exit(status)


def _refuse(container: Container, starter: Socket, error: IsomarkError | OSError) -> None:
    told = error if isinstance(error, IsomarkError) else cannot_write(container.path, error)
    starter.setblocking(True)
    try:
        wire.send(starter, wire.FAILED, {"message": told.message, "hint": told.hint, "code": ENGINE_FAILED})
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


class Monitor:
    """Watches over one container until it has ended for good."""

    def __init__(self, container: Container, starter: Socket, lock: int, doing: Steps) -> None:
        """Take all that watching needs; when this fails nothing is left. ``doing`` is for the first start.

        Raises:
            IsomarkError, OSError: it cannot be had.
        """
        self._container = container
        self._config = container.config
        self._lock = lock
        self._doing = doing
        self._state = container.state()
        self._loop = Loop()
        self._log = self._open_log()
        self._relay = Relay(
            self._loop, self._log, self._serve, self._signal, input_once=bool(self._config["stdin_once"])
        )
        self._starter: Client | None = self._relay.accept(starter)
        self._waiting: list[Client] = []
        self._stopping: list[Client] = []
        self._launch: Launch | None = None
        self._status: int | None = None
        self._failure: dict[str, Any] | None = None
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._resting = False
        self._killer = self._kill_now
        self._journal = Journal(container.place.journals)
        try:
            self._entry = self._journal.own("container", state=container.place.state, id=container.id)
            self._listener = wire.listen(container.path)
        except BaseException:
            self._journal.leave()
            raise

    def _open_log(self) -> LogWriter | None:
        log = self._config["log"]
        if log["driver"] == "none":
            return None
        return LogWriter(self._container.path, log["max_bytes"], log["max_files"])

    def run(self, request: dict[str, Any]) -> None:
        """Start the container, again and again if it is so policed, and clean up after it."""
        journal, listener = self._journal, self._listener
        self._state["journal"] = journal.owner.id
        self._state["monitor"] = [journal.owner.pid, journal.owner.start_ticks, journal.owner.boot_id]
        listener.setblocking(False)
        self._listen(listener)
        _signal.signal(_signal.SIGTERM, lambda _number, _frame: self._stop(None, None))
        assert self._starter is not None
        self._serve(self._starter, request)
        try:
            while self._once(journal) and self._rest():
                self._state["restarts"] += 1
        finally:
            listener.close()
        self._finish(journal)
        journal.gone(self._entry)
        journal.close()
        self._say_goodbye()
        if self._config["network"] == "bridge" and usernamespace.privileged():
            from runtimes.network import attach

            attach.linger(self._container.place.state)

    # one life

    def _once(self, journal: Journal) -> bool:
        """Start the container, wait for its end, note it; return whether it shall start again."""
        self._status = None
        self._state.update(exit_code=None, oom_killed=False, error=None, finished=None, stopped=False)
        begun = time.monotonic()
        self._launch = Launch(self._container, journal, None if self._starter is None else self._doing)
        try:
            self._start(self._launch)
        except IsomarkError as error:
            self._launch.end()
            return self._start_failed(error, self._launch.failure_code(error))
        except OSError as error:
            self._launch.end()
            refused = HostError(
                f"the host refused: {error.strerror}", hint="isomark doctor looks for the usual reasons"
            )
            return self._start_failed(refused, ENGINE_FAILED)
        self._loop.run(lambda: self._status is not None)
        self._wind_up(self._launch)
        if time.monotonic() - begun > STEADY_SECONDS:
            self._pause_seconds = FIRST_PAUSE_SECONDS
        return self._shall_restart()

    def _start(self, launch: Launch) -> None:
        launch.start()
        self._relay.take(launch.outputs, launch.input, launch.terminal)
        process = Process.of(launch.pid)
        self._state.update(
            status="running",
            process=process.write() if process is not None else None,
            started=now(),
            network=launch.network,
            rootless=launch.rootless,
            remap=launch.remap,
        )
        self._container.write_state(self._state)
        self._loop.watch(launch.pidfd, READ, lambda _events: self._reap(launch))
        if self._starter is not None:
            if self._doing.trace:
                self._relay.tell(self._starter, wire.STARTED, {"monitor": self._doing.times, "container": launch.steps})
            else:
                self._relay.send(self._starter, wire.STARTED)
            self._starter = None

    def _start_failed(self, error: IsomarkError, code: int) -> bool:
        """Tell and note that it did not start."""
        self._state.update(status="exited", process=None, exit_code=code, error=error.message, finished=now())
        if self._starter is not None:
            self._failure = {"message": error.message, "hint": error.hint, "code": code}  # told when all is cleaned up
            return False
        return self._shall_restart()

    def _reap(self, launch: Launch) -> None:
        self._loop.forget(launch.pidfd)
        _, status = os.waitpid(launch.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._status = code if code >= 0 else 128 - code

    def _wind_up(self, launch: Launch) -> None:
        """Take the last output, remove what the host lent, note the end."""
        oom = launch.oom_killed()
        launch.kill_rest()
        deadline: list[bool] = []
        timer = lambda: deadline.append(True)  # noqa: E731 - has to be the same object to be cancelled
        self._loop.at(time.monotonic() + LAST_WORDS_SECONDS, timer)
        self._loop.run(lambda: self._relay.silent or bool(deadline))
        self._loop.cancel(timer)
        self._loop.cancel(self._killer)
        self._relay.end()
        fault = launch.end()
        self._state.update(
            status="exited",
            process=None,
            exit_code=self._status,
            oom_killed=oom,
            error=fault or self._relay.log_fault or (launch.oom_words() if oom else None),
            finished=now(),
            network=None,
        )

    # between two lives

    def _shall_restart(self) -> bool:
        policy, most = self._config["restart"]["policy"], self._config["restart"]["most"]
        if self._state["stopped"] or policy == "no":
            return False
        if policy == "on-failure":
            return bool(self._state["exit_code"]) and not 0 < most <= self._state["restarts"]
        return True

    def _rest(self) -> bool:
        """Wait before the next start; return whether it shall still come."""
        self._state["status"] = "restarting"
        try:
            self._container.write_state(self._state)
        except HostError as error:
            self._state["error"] = f"it was not started again: {error.message}"
            return False
        self._tell_waiting()
        self._resting = True
        over: list[bool] = []
        wake = lambda: over.append(True)  # noqa: E731 - has to be the same object to be cancelled
        self._loop.at(time.monotonic() + self._pause_seconds, wake)
        self._loop.run(lambda: bool(over) or self._state["stopped"])
        self._loop.cancel(wake)
        self._resting = False
        self._pause_seconds = min(self._pause_seconds * 2, LONGEST_PAUSE_SECONDS)
        return not self._state["stopped"]

    def _finish(self, journal: Journal) -> None:
        """The container has ended for good."""
        self._state.update(status="exited", journal=None, monitor=None)
        if self._config["auto_remove"]:
            erase(self._container, journal, volumes=True)
        else:
            self._write_last()

    def _write_last(self) -> None:
        """Write how it ended. A full disk has room for that: the next start makes some of our files anew."""
        try:
            self._container.write_state(self._state, sync=True)
        except HostError:
            if self._failure is not None:  # it never ran: what is on disk is true, and who asked is told
                return
            for name in FILES:
                remove_tree(f"{self._container.path}/{name}")
            self._container.write_state(self._state, sync=True)

    def _say_goodbye(self) -> None:
        """Answer all who waited. The monitor's lock is given up first: who hears may start the container again."""
        os.close(self._lock)
        if self._failure is not None and self._starter is not None:
            self._starter.attached = False
            self._relay.tell(self._starter, wire.FAILED, self._failure)
        self._tell_waiting()
        late: list[bool] = []
        self._loop.at(time.monotonic() + GOODBYE_SECONDS, lambda: late.append(True))
        clients = list(self._relay.clients.values())
        self._loop.run(lambda: bool(late) or all(map(self._relay.drain, clients)))

    def _tell_waiting(self) -> None:
        answer = {key: self._state[key] for key in ("exit_code", "oom_killed", "error")}
        for client in list(self._relay.clients.values()):
            if client.attached or client in self._waiting:
                self._relay.tell(client, wire.ENDED, answer)
        for client in self._stopping:
            self._relay.tell(client, wire.DONE, answer)
        self._waiting, self._stopping = [], []

    # what clients ask for

    def _listen(self, listener: Socket) -> None:
        if listener.fileno() != -1:
            self._loop.watch(listener.fileno(), READ, lambda _events: self._accept(listener))

    def _accept(self, listener: Socket) -> None:
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._loop.forget(listener.fileno())  # who comes waits until somebody has left
            self._loop.at(time.monotonic() + BUSY_SECONDS, lambda: self._listen(listener))
            return
        self._relay.accept(_socket.socket(fileno=fd))

    def _serve(self, client: Client, request: dict[str, Any]) -> None:
        what = request["do"]
        if what == "attach":
            self._relay.attach(client, writes=bool(request["input"]), size=request["size"])
        elif what == "wait":
            self._waiting.append(client)
        elif what == "follow":
            client.follows = True
        elif what == "stop":
            self._stopping.append(client)
            self._stop(request["signal"], request["timeout"])
        elif what == "start":
            return
        else:
            self._change(client, request)

    def _change(self, client: Client, request: dict[str, Any]) -> None:
        launch, what = self._launch, request["do"]
        try:
            if launch is None or self._status is not None or self._resting:
                raise HostError("the container is not running", hint="isomark container ps -a")
            if what == "kill":
                self._kill(int(request["signal"]))
            elif what in ("pause", "unpause"):
                self._freeze(launch, pause=what == "pause")
            elif what == "exec":
                self._execute(request["spec"])
            else:
                raise HostError(f"the monitor does not know how to {what}", hint="it may be of an older version")
        except OSError as error:
            failure = {"message": f"the host refused: {error.strerror}", "hint": "", "code": ENGINE_FAILED}
            self._relay.tell(client, wire.FAILED, failure)
        except IsomarkError as error:
            self._relay.tell(
                client, wire.FAILED, {"message": error.message, "hint": error.hint, "code": getattr(error, "code", 1)}
            )
        else:
            self._relay.send(client, wire.DONE)

    def _execute(self, spec: Spec) -> None:
        from runtimes.engine.joining import bear_within  # only if somebody asks

        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            newborn, _ = bear_within(self._container, spec, (null, null, null))
        finally:
            os.close(null)

        def reap(_events: int) -> None:
            self._loop.forget(newborn.pidfd)
            os.waitpid(newborn.pid, 0)
            newborn.close()

        self._loop.watch(newborn.pidfd, READ, reap)

    def _freeze(self, launch: Launch, *, pause: bool) -> None:
        if pause == (self._state["status"] == "paused"):
            raise HostError(f"the container is {'already' if pause else 'not'} paused")
        launch.freeze(frozen=pause)
        self._state["status"] = "paused" if pause else "running"
        try:
            self._container.write_state(self._state)
        except HostError:
            if pause:
                launch.freeze(frozen=False)
                self._state["status"] = "running"
            raise

    def _thaw(self, launch: Launch) -> None:
        """Thaw what shall end; what cannot be noted now is noted when it ended."""
        try:
            self._freeze(launch, pause=False)
        except HostError:
            if self._state["status"] == "paused":
                raise

    def _stop(self, signal: int | None, timeout: float | None) -> None:
        """Ask for the end, and see to it after ``timeout`` seconds; ``None``: as configured, below 0: never."""
        self._state["stopped"] = True
        if self._launch is None or self._status is not None or self._resting:
            return
        if timeout is None:
            timeout = float(self._config["stop_timeout"])
        self._signal(signal or int(self._config["stop_signal"]))
        if self._state["status"] == "paused":
            self._thaw(self._launch)
        self._loop.cancel(self._killer)
        if timeout >= 0:
            self._loop.at(time.monotonic() + timeout, self._killer)

    def _kill(self, signal: int) -> None:
        """Pass a signal on; one that means the end is not followed by another start."""
        if signal in (_signal.SIGKILL, self._config["stop_signal"]):
            self._state["stopped"] = True
        self._signal(signal)
        if signal == _signal.SIGKILL and self._state["status"] == "paused":
            assert self._launch is not None
            self._thaw(self._launch)

    def _kill_now(self) -> None:
        self._signal(_signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._launch is not None and self._status is None and self._launch.pidfd != -1:
            try:
                _signal.pidfd_send_signal(self._launch.pidfd, number)
            except ProcessLookupError:
                return
