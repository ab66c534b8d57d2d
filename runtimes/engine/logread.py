"""Reading the log back, following it across rotations."""

from __future__ import annotations

import os

from runtimes.engine import text, wire
from runtimes.engine.log import NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from runtimes.engine.container import Container

CHUNK = 1 << 20
_TIME_LENGTH = len("2024-01-31T12:00:00.000000000Z")


class Record:
    """One record: bytes as they were printed, the stream, and when (RFC 3339)."""

    __slots__ = ("data", "stream", "time")

    def __init__(self, value: dict[str, Any]) -> None:
        self.data = str(value["log"]).encode("utf-8", "surrogateescape")
        self.stream = str(value["stream"])
        self.time = str(value["time"])
        if self.stream not in ("stdout", "stderr") or len(self.time) != _TIME_LENGTH:
            raise ValueError(f"this is no record: {value}")


def _parse(line: bytes) -> Record | None:
    """The record in a line; ``None`` for one that is none: a full disk or a kill has torn it."""
    try:
        return Record(text.loads(line.decode()))
    except (ValueError, KeyError, TypeError):
        return None


class LogReader:
    """Reads the log's files from the oldest to the newest, and then on as they grow."""

    def __init__(self, directory: str) -> None:
        self._path = f"{directory}/{NAME}"
        self._fd = -1
        self._rest = b""
        older = [number for number in range(1, 1000) if os.path.exists(f"{self._path}.{number}")]
        self._waiting = [f"{self._path}.{number}" for number in reversed(older)]

    def records(self) -> Iterator[Record]:
        """Yield all that is there now and was not yielded before."""
        while True:
            if self._fd == -1 and not self._open_next():
                return
            yield from self._read_on()
            if not self._is_rotated():
                return
            yield from self._read_on()  # what came between reading and being rotated
            os.close(self._fd)
            self._fd, self._rest = -1, b""

    def close(self) -> None:
        """Let go of the file."""
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1

    def _open_next(self) -> bool:
        while True:
            path = self._waiting.pop(0) if self._waiting else self._path
            try:
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if path == self._path:
                    return False
                continue
            return True

    def _is_rotated(self) -> bool:
        try:
            return os.stat(self._path).st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def _read_on(self) -> Iterator[Record]:
        while data := os.read(self._fd, CHUNK):
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from filter(None, map(_parse, lines))


def last(directory: str, count: int) -> tuple[list[Record], LogReader]:
    """The records of the last ``count`` lines, and a reader for what follows.

    A long line may be several records; only the last of them has its newline.
    """
    reader = LogReader(directory)
    kept: list[list[Record]] = []
    open_lines: dict[str, list[Record]] = {}
    for record in reader.records():
        if record.stream not in open_lines:
            open_lines[record.stream] = []
            kept.append(open_lines[record.stream])
            del kept[: max(0, len(kept) - max(count, 1))]
        open_lines[record.stream].append(record)
        if record.data.endswith(b"\n"):
            del open_lines[record.stream]
    return ([record for line in kept for record in line] if count else []), reader


def follow(container: Container, reader: LogReader) -> Iterator[Record]:
    """Yield what is logged from now on, until the container has ended for good."""
    connection = wire.connect(container)
    if connection is not None:
        wire.send(connection, wire.REQUEST, {"do": "follow"})
        yield from reader.records()
        while wire.receive(connection)[0]:
            yield from reader.records()
    yield from reader.records()
