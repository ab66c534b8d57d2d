"""A started process or container, as the trial sees it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.channel import Channel
from bench.errors import HostError, InstanceError
from bench.model import Event, Line, MemoryReading, Step
from runtimes import usernamespace
from runtimes.spawner import Child, Ended

KILL_SECONDS: Final = 10.0
STATUS_SECONDS: Final = 1.0
"""How long the exit status may come after the console's end."""


class ProcessInstance(ABC):
    """What both kinds share; ``undo`` removes from the host what was made for it, ``folder`` holds what it writes."""

    def __init__(self, channel: Channel, child: Child, undo: ExitStack, folder: Path) -> None:
        self._channel = channel
        self._child = child
        self._undo = undo
        self._folder = folder
        self._told = False

    @property
    def events(self) -> Sequence[Event]:
        """What happened so far, in order: spawned, ready, exited."""
        return self._channel.events

    @property
    def tail(self) -> Sequence[str]:
        """The last console lines, and how the instance ended if it did."""
        return self._channel.tail

    @property
    def steps(self) -> Sequence[Step]:
        """The set-up's steps and when each began."""
        return [Step(name, at_seconds) for name, at_seconds in self._child.steps]

    def lines(self, timeout_seconds: float) -> Iterator[Line]:
        """Yield console lines until it closes; then the tail says how the instance ended.

        Raises:
            ConsoleTimeout: ``timeout_seconds`` after the call the console is still open.
            ConsoleFlood: it printed too much.
        """
        yield from self._channel.lines(timeout_seconds)
        if self._await_end(STATUS_SECONDS) is None and not self._told:
            self._told = True
            self._channel.tail.append("[closed its console and still runs]")

    def send(self, text: str) -> None:
        """Write one line to the payload's standard input.

        Raises:
            InstanceError: it no longer reads.
        """
        self._channel.send(text)

    def stop(self, timeout_seconds: float) -> bool:
        """Send SIGTERM to the first process; return whether it ended in time.

        A first process of a PID namespace without a handler for SIGTERM ignores it (pid_namespaces(7)).
        """
        self._child.signal(signal.SIGTERM)
        return self._await_end(timeout_seconds) is not None

    def kill(self) -> None:
        """End every process of it at once; idempotent.

        Raises:
            HostError: it does not die.
        """
        self._child.signal(signal.SIGKILL)
        ended = self._await_end(KILL_SECONDS)
        if ended is None or ended.status is None:
            self._kill_members()

    def own_disk_bytes(self) -> int:
        """The blocks allocated for its directories on the host (stat(2)), hard links counted once.

        Raises:
            InstanceError: it has been removed.
        """
        if not self._folder.is_dir():
            raise InstanceError("the instance is gone", tail=self.tail)
        return _allocated_bytes(self._folder)

    @abstractmethod
    def memory(self) -> MemoryReading:
        """Read what the instance costs the host now.

        Raises:
            InstanceError: the instance is gone.
        """

    @abstractmethod
    def address(self) -> str | None:
        """The address that the host reaches the payload's ports at."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._undo:
            self.kill()

    @abstractmethod
    def _kill_members(self) -> None:
        """Kill what is left when the sandbox cannot say that all is gone."""

    def _tell(self, ended: Ended) -> str:
        """How it ended, in the words of the tail's last line."""
        return str(ended)

    def _await_end(self, timeout_seconds: float) -> Ended | None:
        ended = self._child.wait(timeout_seconds)
        if ended is not None and not any(event.name == "exited" for event in self._channel.events):
            self._channel.push("exited", ended.at_seconds)
            self._channel.tail.append(f"[{self._tell(ended)}]")
        return ended


def _allocated_bytes(folder: Path) -> int:
    """A container may write while this looks: what has gone meanwhile counts nothing."""
    blocks: dict[tuple[int, int], int] = {}
    for directory, _, files in os.walk(folder, onerror=_unless_gone):
        for path in (directory, *(f"{directory}/{name}" for name in files)):
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            blocks[status.st_dev, status.st_ino] = status.st_blocks
    return sum(blocks.values()) * 512


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def remove_tree(path: Path) -> None:
    """Delete what an instance wrote, however deep; gone already is fine.

    Raises:
        HostError: something in it cannot be deleted.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except RecursionError:  # Python 3.11 recurses; rm does not
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], capture_output=True, check=False)
    except PermissionError as error:  # subordinate ids' files, or directories that their owner closed
        if usernamespace.privileged():
            raise _undeletable(path, error.strerror) from error
        usernamespace.within(lambda: shutil.rmtree(path))
    except OSError as error:
        raise _undeletable(path, error.strerror) from error
    if path.exists():
        raise _undeletable(path, "too deep")


def _undeletable(path: Path, reason: str | None) -> HostError:
    return HostError(f"cannot remove {path}: {reason}", hint="lsattr -R may show an immutable file")
