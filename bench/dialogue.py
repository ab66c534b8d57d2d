"""Talking to a payload: sending a command and waiting for the message that answers it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TypeVar

from bench import protocol
from bench.driver import Instance
from bench.errors import ConsoleClosed, ConsoleTimeout, InstanceError

Answer = TypeVar("Answer", protocol.Ready, protocol.RoundBegin, protocol.RoundEnd, protocol.Pong, protocol.Exit)


class Dialogue:
    """One trial's side of the console. ``figures`` collects what the payload said outside rounds."""

    def __init__(self, instance: Instance, timeout_seconds: float) -> None:
        self.figures: dict[str, float] = {}
        self._instance = instance
        self._timeout_seconds = timeout_seconds

    def ready(self) -> float:
        """Wait for ``ready`` and return when the host read it."""
        return self._expect(protocol.Ready, lambda _: True, self._timeout_seconds)[1]

    def ready_again(self) -> float:
        """Wait until an instance that was asked to reboot is ready anew, and return when; its payload ends before."""
        self._expect(protocol.Exit, lambda _: True, self._timeout_seconds)
        return self.ready()

    def ping(self) -> float:
        """Return the seconds from writing ``ping`` to reading ``pong``."""
        asked = time.monotonic()
        return self.pong(self.ask()) - asked

    def ask(self) -> str:
        """Write ``ping`` and return the token that tells its answer."""
        token = secrets.token_hex(3)
        self._instance.send(f"ping {token}")
        return token

    def pong(self, token: str) -> float:
        """Wait for the answer to the ping with ``token`` and return when the host read it."""
        return self._expect(protocol.Pong, lambda pong: pong.token == token, self._timeout_seconds)[1]

    def answers(self, token: str, seconds: float) -> bool:
        """Whether the answer to the ping with ``token`` comes within ``seconds``."""
        try:
            return any(protocol.parse(line.text) == protocol.Pong(token) for line in self._instance.lines(seconds))
        except ConsoleTimeout:
            return False

    def round(self, number: int, seconds: float) -> tuple[dict[str, float], float]:
        """Have the payload do round ``number``; return its figures and the host's length of it.

        ``seconds`` is how long it should take; it may take ten times that and the time-out.
        """
        allowed = self._timeout_seconds + 10 * seconds
        self._instance.send(f"round {number}")
        _, begun = self._expect(protocol.RoundBegin, lambda begin: begin.number == number, allowed)
        end, ended = self._expect(protocol.RoundEnd, lambda end: end.number == number, allowed)
        return dict(end.figures), ended - begun

    def quit(self, timeout_seconds: float) -> int | None:
        """Ask the payload to end and read until it has, or its console closes; late endings are the driver's to force.

        Returns the status that an init told, of a virtual server; what one does afterwards is powering off, of which
        nothing is measured. Where none did, the instance's events say whether it has ended.
        """
        self._instance.send("quit")
        try:
            for line in self._instance.lines(timeout_seconds):
                if isinstance(message := protocol.parse(line.text), protocol.Exit):
                    return message.code
        except ConsoleTimeout:
            return None
        return None

    def _expect(self, kind: type[Answer], fits: Callable[[Answer], bool], seconds: float) -> tuple[Answer, float]:
        for line in self._instance.lines(seconds):
            if protocol.is_last_of_kernel(line.text):
                raise InstanceError("the guest's kernel panicked", tail=self._instance.tail)
            message = protocol.parse(line.text)
            if isinstance(message, kind) and fits(message):
                return message, line.at_seconds
            self._heed(message, kind.__name__.lower())
        raise ConsoleClosed(
            f"the instance ended before it said {kind.__name__.lower()!r}",
            hint="its last console lines say why",
            tail=self._instance.tail,
        )

    def _heed(self, message: protocol.Message | None, awaited: str) -> None:
        tail = self._instance.tail
        match message:
            case None | protocol.Init() | protocol.Step():
                return
            case protocol.Figures(figures):
                self.figures.update(figures)
            case protocol.PayloadError(text):
                raise InstanceError(f"the payload gave up: {text}", tail=tail)
            case protocol.Exit(code):
                raise InstanceError(f"the payload ended with status {code} before it said {awaited!r}", tail=tail)
            case protocol.Malformed(text, reason):
                raise InstanceError(f"the payload broke the protocol ({reason}): {text[:120]!r}", tail=tail)
            case _:
                raise InstanceError(f"the payload said {message} where {awaited!r} was due", tail=tail)
