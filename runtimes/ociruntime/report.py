"""What went wrong, for people on standard error and for engines in the file of ``--log``.

podman, conmon and containerd's shim read that file: one line, with ``level`` and ``msg`` (sirupsen/logrus, as in runc).
"""

from __future__ import annotations

import os
import time

from bench.errors import UsageError
from runtimes.ociruntime import documents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PROGRAM: Final = "isomark-oci"
FORMATS: Final = ("text", "json")


class Log:
    """Where to report to; nothing is opened before there is something to say."""

    __slots__ = ("_debug", "_form", "_path")

    def __init__(self, path: str | None, form: str, *, debug: bool) -> None:
        if form not in FORMATS:
            raise UsageError(f"--log-format is text or json, not {form!r}")
        self._path = path
        self._form = form
        self._debug = debug

    def error(self, message: str) -> None:
        """Report the reason of a failure, on one line."""
        line = message.replace("\n", " · ")
        _write(2, f"{PROGRAM}: {line}\n")
        self._append("error", line)

    def warning(self, message: str) -> None:
        """Report what was passed over; to the file alone, if there is one: an engine shows the rest to its user."""
        if self._path is None:
            _write(2, f"{PROGRAM}: warning: {message}\n")
        else:
            self._append("warning", message)

    def debug(self, message: str) -> None:
        """Report what is done, if asked to."""
        if not self._debug:
            return
        if self._path is None:
            _write(2, f"{PROGRAM}: {message}\n")
        else:
            self._append("debug", message)

    def _append(self, level: str, message: str) -> None:
        if self._path is None:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._form == "json":
            line = documents.dumps({"level": level, "msg": message, "time": now})
        else:
            line = f'time="{now}" level={level} msg={documents.dumps(message)}'
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        except OSError as error:
            _write(2, f"{PROGRAM}: cannot write to the log {self._path}: {error.strerror}\n")
            return
        _write(fd, line + "\n")
        os.close(fd)


def _write(fd: int, text: str) -> None:
    try:
        os.write(fd, text.encode(errors="backslashreplace"))
    except OSError:  # a full or closed standard error: there is nowhere left to say so
        return
