"""``isomark container logs``."""

from __future__ import annotations

import os
import sys

from bench.errors import InstanceError, UsageError
from runtimes.engine.clock import instant, parse_instant
from runtimes.engine.command import Command
from runtimes.engine.containers import find
from runtimes.engine.logread import LogReader, follow, last
from runtimes.engine.place import Place
from runtimes.engine.quantities import parse_int

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtimes.engine.logread import Record
    from runtimes.engine.options import Options, Table

LOGS: Table = (
    ("follow", "f", "", "Go on as more is printed, until the container ends"),
    ("since", "", "INSTANT", "From then on: 2024-01-31T12:00:00Z, seconds since 1970, or 10m ago"),
    ("tail", "n", "N", "Only the last N lines; all by default"),
    ("timestamps", "t", "", "Each line's instant before it"),
    ("until", "", "INSTANT", "Up to then"),
)


class Printer:
    """Prints records to our own standard output and error, as the container had them."""

    def __init__(self, options: Options) -> None:
        since, until = options.text("since"), options.text("until")
        self._since = instant(parse_instant(since)) if since is not None else ""
        self._until = instant(parse_instant(until)) if until is not None else "~"
        self._stamps = options.flag("timestamps")
        self._at_start = {"stdout": True, "stderr": True}

    def show(self, records: Iterable[Record]) -> bool:
        """Print what lies between since and until; false if a record lies behind.

        Instants are compared as they are written. Later records may be earlier ones, where a clock was set back.
        """
        pieces: list[bytes] = []
        fd = 1
        goes_on = True
        for record in records:
            if not self._since <= record.time <= self._until:
                goes_on = goes_on and record.time <= self._until
                continue
            wanted = 2 if record.stream == "stderr" else 1
            if wanted != fd or len(pieces) > 1000:
                _write(fd, pieces)
                fd, pieces = wanted, []
            if self._stamps and self._at_start[record.stream]:
                pieces.append(record.time.encode() + b" ")
            self._at_start[record.stream] = record.data.endswith(b"\n")
            pieces.append(record.data)
        _write(fd, pieces)
        return goes_on


def _write(fd: int, pieces: list[bytes]) -> None:
    view = memoryview(b"".join(pieces))
    while view:
        view = view[os.write(fd, view) :]


def logs(options: Options) -> int:
    """Print what a container printed."""
    if len(options.rest) != 1:
        raise UsageError("logs takes one container", hint="isomark container logs NAME")
    container = find(Place(), options.rest[0])
    if container.config["log"]["driver"] == "none":
        raise InstanceError(f"container {container.name} keeps no log", hint="it was created with --log-driver none")
    printer = Printer(options)
    tail = options.text("tail")
    if tail is None or tail == "all":
        reader = LogReader(container.path)
        goes_on = printer.show(reader.records())
    else:
        records, reader = last(container.path, parse_int(tail, "tail", least=0))
        goes_on = printer.show(records)
    if goes_on and options.flag("follow"):
        for record in follow(container, reader):
            if not printer.show((record,)):
                break
    reader.close()
    sys.stdout.flush()
    return 0


COMMANDS = {"logs": Command(logs, LOGS, "[OPTIONS] CONTAINER", "Print what a container printed.")}
