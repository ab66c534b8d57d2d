"""Talking to QEMU over QMP (QEMU, docs/interop/qmp-spec): commands, and migration to and from a file."""

from __future__ import annotations

import json
import shlex
import socket
from pathlib import Path
from typing import Any, Final

from bench.errors import HostError

ANSWER_SECONDS: Final = 120.0
"""More than writing or reading the memory of the machine takes on a busy host."""


class Monitor:
    """One QMP session over a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        """Shake hands.

        Raises:
            HostError: QEMU ended, or stays silent.
        """
        connection.settimeout(ANSWER_SECONDS)
        self._socket = connection
        self._lines = connection.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._receive()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: object) -> Any:
        """Execute a command and return its answer; events that come first are kept.

        Raises:
            HostError: QEMU refused, ended or stays silent.
        """
        try:
            self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode())
        except OSError as error:
            raise HostError("the emulator has ended") from error
        while True:
            message = self._receive()
            if "error" in message:
                raise HostError(f"the emulator refuses {name}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]
            self._events.append(message)

    def freeze(self, path: Path) -> None:
        """Stop the machine and write its memory and devices to ``path``.

        Raises:
            HostError: it cannot be written.
        """
        self.command("stop")
        self.command("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self._migrate("migrate", f"exec:cat > {shlex.quote(str(path))}", path)

    def thaw(self, path: Path) -> None:
        """Read what ``freeze`` wrote, in a machine of the same make that waits for it, and let it go on.

        Raises:
            HostError: it cannot be read.
        """
        self._migrate("migrate-incoming", f"exec:cat {shlex.quote(str(path))}", path)
        self.command("cont")

    def close(self) -> None:
        """End the session; idempotent."""
        self._lines.close()
        self._socket.close()

    def _migrate(self, command: str, uri: str, path: Path) -> None:
        self.command("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        self.command(command, uri=uri)
        status = ""
        while status != "completed":
            event = self._events.pop(0) if self._events else self._receive()
            if event.get("event") == "MIGRATION":
                status = event["data"]["status"]
            if status == "failed":
                raise HostError(f"the emulator cannot {command} {path}", hint=f"df -h {path.parent}")

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except TimeoutError as error:
            raise HostError(
                f"the emulator did not answer for {ANSWER_SECONDS:.0f} s", hint="is the host overloaded?"
            ) from error
        except OSError:  # reset: it ended
            line = b""
        if not line:
            raise HostError("the emulator has ended")
        message: dict[str, Any] = json.loads(line)
        return message
