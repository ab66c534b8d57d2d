"""Starting the worker for one step, passing its output on, and taking its answer."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from bench import errors
from bench.errors import HostError, IsomarkError
from bench.journal import OWNER_VARIABLE, Journal
from runtimes import usernamespace

_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from runtimes.build.worker import main; main(int(sys.argv[2]))"
)
_SOURCES: Final = str(Path(__file__).resolve().parent.parent.parent)
_CHUNK_BYTES: Final = 65536
_MAX_LINE: Final = 16384
"""Longer lines are told in pieces."""
_END_SECONDS: Final = 10.0
_KINDS: Final = {
    kind.__name__: kind for kind in (errors.ImageError, errors.HostError, errors.UsageError, errors.InstanceError)
}

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For the programs of the host that the engine uses, such as nft."""

Hear = Callable[[str], None]


def ask(request: Mapping[str, Any], journal: Journal, hear: Hear | None = None) -> Any:  # noqa: ANN401 - JSON
    """Have a worker do ``request`` and return its result; ``hear`` gets each line of a step's output as it comes.

    Raises:
        IsomarkError: what the worker met.
        HostError: it died.
    """
    read, write = os.pipe()
    owned = journal.own("process", marker=journal.owner.id)
    try:
        os.set_blocking(read, False)
        worker = _start(write, journal)
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    try:
        answer, last = _converse(worker, {**request, "output": write}, read, hear)
    finally:
        os.close(read)
        _end(worker)
        journal.gone(owned)
    return _result(answer, f"ended with status {worker.returncode}: {last}")


def _start(output: int, journal: Journal) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, _SOURCES, str(os.getpid())],
            env={OWNER_VARIABLE: journal.owner.id, "PATH": _PATH} | _mark(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            pass_fds=[output],
            start_new_session=True,  # Ctrl-C is for us; we end it in our own way
            cwd="/",
        )
    except OSError as error:
        raise HostError(f"cannot start {sys.executable}: {error.strerror}", hint="raise ulimit -n or -u") from error


def _mark() -> dict[str, str]:
    """Says to the worker that it is root of a user namespace only."""
    return {} if usernamespace.privileged() else {usernamespace.MARK: "1"}


def _converse(
    worker: subprocess.Popen[bytes], request: Mapping[str, Any], output: int, hear: Hear | None
) -> tuple[bytes, str]:
    """Send the request, keep standard input open, and read both pipes to their ends: the answer, and the last line."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(json.dumps(request).encode() + b"\n")
        worker.stdin.flush()
    except BrokenPipeError:
        pass  # it died; the missing answer says so
    answer = b""
    lines = _Lines(hear)
    answers = worker.stdout.fileno()
    open_ends = {answers, output}
    poll = select.poll()
    for fd in open_ends:
        poll.register(fd, select.POLLIN | select.POLLHUP)
    while answers in open_ends:
        for fd, _ in poll.poll():
            data = os.read(fd, _CHUNK_BYTES)
            if not data:
                poll.unregister(fd)
                open_ends.discard(fd)
            elif fd == answers:
                answer += data
            else:
                lines.add(data)
    # what a process that outlived its step would still say is not waited for
    lines.add(_rest(output))
    lines.end()
    return answer, lines.last


def _rest(output: int) -> bytes:
    pieces = []
    while True:
        try:
            data = os.read(output, _CHUNK_BYTES)
        except BlockingIOError:
            break
        if not data:
            break
        pieces.append(data)
    return b"".join(pieces)


class _Lines:
    """Cuts a stream of bytes into lines and passes them on."""

    def __init__(self, hear: Hear | None) -> None:
        self.last = ""
        self._hear = hear
        self._rest = b""

    def add(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n")
        while len(self._rest) > _MAX_LINE:
            whole.append(self._rest[:_MAX_LINE])
            self._rest = self._rest[_MAX_LINE:]
        for line in whole:
            self._tell(line)

    def end(self) -> None:
        if self._rest:
            self._tell(self._rest)

    def _tell(self, line: bytes) -> None:
        self.last = line.decode("utf-8", "replace")
        if self._hear is not None:
            self._hear(self.last)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """See it end: by itself once its standard input closes, or by force."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    deadline = time.monotonic() + _END_SECONDS
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    worker.stdout.close()
    try:
        worker.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _result(answer: bytes, end: str) -> Any:  # noqa: ANN401 - JSON
    try:
        value = json.loads(answer)
    except ValueError as error:
        raise HostError(f"the process of a step {end}", hint="dmesg may say why") from error
    if "error" in value:
        kind: type[IsomarkError] = _KINDS.get(value["kind"], errors.HostError)
        raise kind(value["error"], hint=value["hint"])
    return value["result"]
