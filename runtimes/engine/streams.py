"""The ends of a container's standard streams that stay with its monitor."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Streams:
    """Whoever takes ``outputs`` and ``input`` over closes them; else ``close`` does.

    Attributes:
        outputs: Descriptors to read -> stream.
        input: The descriptor that stdin is written to; -1 without.
        terminal: The terminal's master, which is also in ``outputs``; -1 without.
    """

    __slots__ = ("_config", "input", "outputs", "terminal")

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self.outputs: dict[int, str] = {}
        self.input = -1
        self.terminal = -1

    def open(self, held: list[int]) -> tuple[int, int, int]:
        """The container's descriptors 0, 1 and 2; ``held`` gets those to close when it has them."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        held.append(null)
        if self._config["tty"]:
            return null, null, null
        stdin = null
        if self._config["stdin_open"]:
            stdin, self.input = os.pipe()
            held.append(stdin)
        ends = []
        for stream in ("stdout", "stderr"):
            near, end = os.pipe()
            self.outputs[near] = stream
            ends.append(end)
            held.append(end)
        return stdin, ends[0], ends[1]

    def take_terminal(self, master: int) -> None:
        """The container made its terminal."""
        self.terminal = master
        self.outputs = {master: "stdout"}
        self.input = master if self._config["stdin_open"] else -1

    def release(self) -> tuple[dict[int, str], int, int]:
        """Give all three away: outputs, input, terminal."""
        given = self.outputs, self.input, self.terminal
        self.outputs, self.input, self.terminal = {}, -1, -1
        return given

    def close(self) -> None:
        """Close what nobody took; idempotent."""
        outputs, input_fd, _ = self.release()
        for fd in {*outputs, input_fd} - {-1}:
            os.close(fd)
