r"""What a container printed: one JSON object per line, as Docker's json-file has it.

    {"log":"text\n","stream":"stdout","time":"2024-01-31T12:00:00.000000000Z"}

A line without its newline at the end goes on in the next record of its stream. Bytes that are not UTF-8 are lone
surrogates (Python's surrogateescape), so that reading gives back the same bytes. When ``log`` has its full size it
becomes ``log.1``, and that ``log.2``; the oldest goes.
"""

from __future__ import annotations

import os

from runtimes.engine import text
from runtimes.engine.clock import now
from runtimes.engine.files import DRAFT

MAX_RECORD = 16 * 1024
"""Longest piece of a line in one record, in bytes, as in Docker."""
NAME = "log"
_LINES_AT_ONCE = 1000
"""A short line becomes a record of ten times its size: a file shall not grow far beyond its limit by one write."""
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class LogWriter:
    """Appends to the log in ``directory``, keeping at most ``files`` files of about ``size`` bytes."""

    __slots__ = ("_fd", "_files", "_path", "_pending", "_size", "_torn", "_written")

    def __init__(self, directory: str, size: int, files: int) -> None:
        self._path = f"{directory}/{NAME}"
        self._torn = False
        self._size = size
        self._files = files
        self._pending = {"stdout": b"", "stderr": b""}
        self._fd = os.open(self._path, _FLAGS, 0o600)
        self._written = os.fstat(self._fd).st_size

    def write(self, stream: str, data: bytes) -> None:
        """Take what came from ``stdout`` or ``stderr``; an unfinished line waits for its rest.

        Raises:
            OSError: the disk does not take it.
        """
        lines = _split(self._pending[stream] + data)
        self._pending[stream] = lines.pop()
        for at in range(0, len(lines), _LINES_AT_ONCE):
            self._put(stream, lines[at : at + _LINES_AT_ONCE])

    def flush(self) -> None:
        """Write unfinished lines, because no more will come.

        Raises:
            OSError: the disk does not take it.
        """
        for stream, rest in self._pending.items():
            if rest:
                self._pending[stream] = b""
                self._put(stream, [rest])

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def _put(self, stream: str, lines: list[bytes]) -> None:
        end = f',"stream":"{stream}","time":"{now()}"}}\n'
        records = "".join([f'{{"log":{text.quote(line.decode("utf-8", "surrogateescape"))}{end}' for line in lines])
        data = records.encode()
        if self._written and self._written + len(data) > self._size:
            self._rotate()
        if self._torn:
            data = b"\n" + data  # a reader passes over the torn line, and only that
        self._torn = True
        self._written += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._torn = False

    def _rotate(self) -> None:
        fresh = os.open(f"{self._path}{DRAFT}", _FLAGS | os.O_TRUNC, 0o600)  # first: without it the old one goes on
        for number in range(self._files - 1, 0, -1):
            older = self._path if number == 1 else f"{self._path}.{number - 1}"
            try:
                os.rename(older, f"{self._path}.{number}")
            except FileNotFoundError:
                continue
        os.rename(f"{self._path}{DRAFT}", self._path)
        os.close(self._fd)
        self._fd, self._written = fresh, 0


def _split(data: bytes) -> list[bytes]:
    """Whole lines with their newlines, pieces of those that are too long, and last of all what is unfinished."""
    lines = data.split(b"\n")
    rest = lines.pop()
    whole = [line + b"\n" for line in lines]
    if len(data) > MAX_RECORD:
        whole = [line[at : at + MAX_RECORD] for line in whole for at in range(0, len(line), MAX_RECORD)]
        while len(rest) > MAX_RECORD:
            whole.append(rest[:MAX_RECORD])
            rest = rest[MAX_RECORD:]
    whole.append(rest)
    return whole
