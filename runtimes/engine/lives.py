"""The lives of a container, from its start until it has ended for good: what its monitor does."""

from __future__ import annotations

import _signal
import os
import time

from bench.errors import HostError, IsomarkError
from runtimes import usernamespace
from runtimes.engine import wire
from runtimes.engine.clock import now
from runtimes.engine.failure import ENGINE_FAILED
from runtimes.engine.files import remove_tree
from runtimes.engine.journal import Journal
from runtimes.engine.launch import Launch
from runtimes.engine.log import LogWriter
from runtimes.engine.loop import READ, Loop
from runtimes.engine.plan import FILES
from runtimes.engine.process import Process
from runtimes.engine.removal import erase
from runtimes.engine.restarts import Restarts
from runtimes.engine.running import Running
from runtimes.engine.service import Service, failure_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 - a class
    from collections.abc import Callable
    from typing import Any

    from runtimes.engine.container import Container
    from runtimes.steps import Steps

LAST_WORDS_SECONDS = 1.0
"""How long the output may stay open after the last process, when it has no PID namespace of its own."""


class Lives:
    """Starts one container, again and again if it is so policed, and cleans up after it."""

    def __init__(self, container: Container, starter: Socket, lock: int, doing: Steps) -> None:
        """Take all that this needs; when it fails nothing is left. ``doing`` is for the first start.

        Raises:
            IsomarkError, OSError: it cannot be had.
        """
        config = self._config = container.config
        self._container = container
        self._lock = lock
        self._doing: Steps | None = doing
        self._loop = Loop()
        self._running = Running(container, self._loop)
        self._state = self._running.state
        self._restarts = Restarts(config["restart"]["policy"], config["restart"]["most"])
        self._failure: dict[str, Any] | None = None
        log = config["log"]
        writer = None if log["driver"] == "none" else LogWriter(container.path, log["max_bytes"], log["max_files"])
        self._service = Service(self._loop, self._running, writer, starter, input_once=bool(config["stdin_once"]))
        self._journal = Journal(container.place.journals)
        try:
            self._entry = self._journal.own("container", state=container.place.state, id=container.id)
            self._heed_sigterm()
            self._listener = wire.listen(container.path)
        except BaseException:
            self._journal.leave()
            raise

    def _heed_sigterm(self) -> None:
        """Have SIGTERM stop the container, from the loop: a handler would not be seen by a wait that goes on."""
        heard, told = os.pipe()
        for fd in (heard, told):
            os.set_blocking(fd, False)

        def stop(_events: int) -> None:
            os.read(heard, 64)
            self._running.stop(None, None)

        self._loop.watch(heard, READ, stop)
        _signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGTERM, lambda _number, _frame: None)

    def run(self, request: dict[str, Any]) -> None:
        """Live until the end; ``request`` is the starter's."""
        owner, place = self._journal.owner, self._container.place
        self._state["journal"] = owner.id
        self._state["monitor"] = [owner.pid, owner.start_ticks, owner.boot_id]
        self._service.open(self._listener, request)
        try:
            while self._once() and self._rest():
                self._state["restarts"] += 1
        finally:
            self._service.close(self._listener)
        self._finish()
        self._journal.gone(self._entry)
        self._journal.close()
        os.close(self._lock)  # first: who hears may start the container again
        if self._failure is not None:
            self._service.tell_failed(self._failure)
        self._tell_ended()
        self._service.say_goodbye()
        if self._config["network"] == "bridge" and usernamespace.privileged():
            from runtimes.network import attach

            attach.linger(place.state)

    def _once(self) -> bool:
        """Start the container, wait for its end, note it; return whether it shall start again."""
        self._state.update(exit_code=None, oom_killed=False, error=None, finished=None, stopped=False)
        launch = Launch(self._container, self._journal, self._doing)
        begun = time.monotonic()
        try:
            self._start(launch)
        except IsomarkError as error:
            return self._start_failed(launch, error, launch.failure_code(error))
        except OSError as error:
            refused = HostError(
                f"the host refused: {error.strerror}", hint="isomark doctor looks for the usual reasons"
            )
            return self._start_failed(launch, refused, ENGINE_FAILED)
        self._loop.run(lambda: self._running.status is not None)
        self._wind_up(launch)
        self._restarts.ran(time.monotonic() - begun)
        return self._restarts.shall(self._state)

    def _start(self, launch: Launch) -> None:
        launch.start()
        self._service.relay.take(*launch.streams.release())
        process = Process.of(launch.pid)
        self._state.update(
            status="running",
            process=process.write() if process is not None else None,
            started=now(),
            **launch.state(),
        )
        self._container.write_state(self._state)
        self._running.begin(launch)
        if self._doing is not None:
            times = {"monitor": self._doing.times, "container": launch.steps} if self._doing.trace else None
            self._service.tell_started(times)
            self._doing = None

    def _start_failed(self, launch: Launch, error: IsomarkError, code: int) -> bool:
        """Undo it, note that it did not start, and tell of it when all is cleaned up."""
        self._service.relay.end()
        launch.end()
        self._state.update(
            status="exited", process=None, network=None, exit_code=code, error=error.message, finished=now()
        )
        if self._service.starter is not None:
            self._failure = failure_of(error, code)
            return False
        return self._restarts.shall(self._state)

    def _wind_up(self, launch: Launch) -> None:
        """Take the last output, remove what the host lent, note the end."""
        relay = self._service.relay
        oom = launch.confinement.oom_killed()
        launch.confinement.kill_rest()
        relay.let_go()
        self._wait(LAST_WORDS_SECONDS, lambda: relay.silent)
        relay.end()
        fault = launch.end()
        self._state.update(
            status="exited",
            process=None,
            exit_code=self._running.status,
            oom_killed=oom,
            error=fault or relay.log_fault or (launch.oom_words() if oom else None),
            finished=now(),
            network=None,
        )

    def _rest(self) -> bool:
        """Wait before the next start; return whether it shall still come."""
        self._state["status"] = "restarting"
        try:
            self._container.write_state(self._state)
        except HostError as error:
            self._state["error"] = f"it was not started again: {error.message}"
            return False
        self._tell_ended()
        self._wait(self._restarts.pause(), lambda: bool(self._state["stopped"]))
        return not self._state["stopped"]

    def _wait(self, seconds: float, done: Callable[[], bool]) -> None:
        """Go on serving until ``done``, at most for so long."""
        over: list[bool] = []
        timer = lambda: over.append(True)  # noqa: E731 - has to be the same object to be cancelled
        self._loop.at(time.monotonic() + seconds, timer)
        self._loop.run(lambda: bool(over) or done())
        self._loop.cancel(timer)

    def _finish(self) -> None:
        """The container has ended for good."""
        self._state.update(status="exited", journal=None, monitor=None)
        if self._config["auto_remove"]:
            erase(self._container, self._journal, volumes=True)
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

    def _tell_ended(self) -> None:
        self._service.tell_ended({key: self._state[key] for key in ("exit_code", "oom_killed", "error")})
