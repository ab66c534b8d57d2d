"""How a pull or push goes, live: a bar for each blob on a terminal, a line for each finished one elsewhere."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from bench.units import format_bytes
from runtimes.oci.descriptor import Descriptor

_SHORT = 19
"""Of a digest: ``sha256:`` and twelve digits, as Docker shows them."""


class Transfers:
    """A ``runtimes.oci.transfer.Watcher`` that draws on standard error; a context manager around the transfer."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TextColumn("{task.fields[how]}"),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begins(self, descriptor: Descriptor, what: str) -> None:
        """Draw a bar for it."""
        with self._lock:
            task = self._bar.add_task(f"{what} {descriptor.digest[:_SHORT]}", total=descriptor.size, how="")
            self._tasks[descriptor.digest] = task

    def advanced(self, descriptor: Descriptor, count: int) -> None:
        """Move its bar."""
        self._bar.advance(self._tasks[descriptor.digest], count)

    def ended(self, descriptor: Descriptor, how: str) -> None:
        """Say how it ended."""
        self._bar.update(self._tasks[descriptor.digest], completed=descriptor.size, how=how)
        if not self._console.is_terminal:
            text = f"{descriptor.digest[:_SHORT]}: {how}, {format_bytes(descriptor.size)}"
            self._console.print(text, highlight=False, soft_wrap=True)

    def stage(self, text: str) -> None:
        """Say what comes next."""
        if not self._console.is_terminal:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
