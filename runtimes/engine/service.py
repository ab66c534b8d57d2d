"""How a monitor serves the commands that connect to it, the one that started it first."""

from __future__ import annotations

import _socket
import errno
import time

from bench.errors import HostError, IsomarkError
from runtimes.engine import wire
from runtimes.engine.failure import ENGINE_FAILED
from runtimes.engine.loop import READ
from runtimes.engine.relay import Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 - a class
    from typing import Any

    from runtimes.engine.log import LogWriter
    from runtimes.engine.loop import Loop
    from runtimes.engine.relay import Client
    from runtimes.engine.running import Running

GOODBYE_SECONDS = 5.0
BUSY_SECONDS = 0.1
"""How long it does not listen when it can open no more files."""


class Service:
    """Its clients, and what they wait for.

    Attributes:
        relay: Between them and the container's standard streams.
        starter: Who waits for the first start; ``None`` once it was told of it.
    """

    def __init__(
        self, loop: Loop, running: Running, log: LogWriter | None, starter: Socket, *, input_once: bool
    ) -> None:
        self.relay = Relay(loop, log, self._serve, running.signal, input_once=input_once)
        self.starter: Client | None = self.relay.accept(starter)
        self._loop = loop
        self._running = running
        self._waiting: list[Client] = []
        self._stopping: list[Client] = []

    def open(self, listener: Socket, request: dict[str, Any]) -> None:
        """Listen; the starter's ``request`` is the first."""
        listener.setblocking(False)
        self._listen(listener)
        assert self.starter is not None
        self._serve(self.starter, request)

    def close(self, listener: Socket) -> None:
        """Listen no more; those who are connected stay."""
        self._loop.forget(listener.fileno())
        listener.close()

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
        self.relay.accept(_socket.socket(fileno=fd))

    def _serve(self, client: Client, request: dict[str, Any]) -> None:
        what = request["do"]
        if what == "attach":
            self.relay.attach(client, writes=bool(request["input"]), size=request["size"])
        elif what == "wait":
            self._waiting.append(client)
        elif what == "follow":
            client.follows = True
        elif what == "stop":
            self._stopping.append(client)
            self._running.stop(request["signal"], request["timeout"])
        elif what != "start":
            self._change(client, request)

    def _change(self, client: Client, request: dict[str, Any]) -> None:
        running, what = self._running, request["do"]
        try:
            if what == "kill":
                running.kill(int(request["signal"]))
            elif what in ("pause", "unpause"):
                running.freeze(pause=what == "pause")
            elif what == "exec":
                running.execute(request["spec"])
            else:
                raise HostError(f"the monitor does not know how to {what}", hint="it may be of an older version")
        except OSError as error:
            failure = {"message": f"the host refused: {error.strerror}", "hint": "", "code": ENGINE_FAILED}
            self.relay.tell(client, wire.FAILED, failure)
        except IsomarkError as error:
            self.relay.tell(client, wire.FAILED, failure_of(error, getattr(error, "code", 1)))
        else:
            self.relay.send(client, wire.DONE)

    def tell_started(self, times: dict[str, Any] | None) -> None:
        """Tell the starter that the command runs, with the ``times`` of how it came to that if these are traced."""
        if self.starter is None:
            return
        if times is None:
            self.relay.send(self.starter, wire.STARTED)
        else:
            self.relay.tell(self.starter, wire.STARTED, times)
        self.starter = None

    def tell_failed(self, failure: dict[str, Any]) -> None:
        """Tell the starter, who waits still, that it did not start."""
        if self.starter is not None:
            self.starter.attached = False
            self.relay.tell(self.starter, wire.FAILED, failure)

    def tell_ended(self, answer: dict[str, Any]) -> None:
        """Tell all who wait for it that a life has ended, and how."""
        for client in list(self.relay.clients.values()):
            if client.attached or client in self._waiting:
                self.relay.tell(client, wire.ENDED, answer)
        for client in self._stopping:
            self.relay.tell(client, wire.DONE, answer)
        self._waiting, self._stopping = [], []

    def say_goodbye(self) -> None:
        """Wait until everybody has taken what was told: who is attached until it leaves, others for a while."""
        late: list[bool] = []
        self._loop.at(time.monotonic() + GOODBYE_SECONDS, lambda: late.append(True))
        clients = list(self.relay.clients.values())
        self._loop.run(lambda: all(self.relay.drain(each) for each in clients if each.attached or not late))


def failure_of(error: IsomarkError, code: int) -> dict[str, Any]:
    """A FAILED message's content; ``code`` is what to exit with."""
    return {"message": error.message, "hint": error.hint, "code": code}
