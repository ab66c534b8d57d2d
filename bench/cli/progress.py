"""How a run goes, live: a bar with the time left on a terminal, one line a trial elsewhere."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.model import Case, OutcomeKind, Trial
from bench.result import Slot
from bench.units import format_seconds


class Progression:
    """A ``bench.conduct.Watcher`` that draws; a context manager around the run."""

    def __init__(self, console: Console, slots: Sequence[Slot]) -> None:
        self.failed = 0
        self._console = console
        self._left = list(slots)
        self._total = len(slots)
        self._walls: dict[Case, list[float]] = defaultdict(list)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=self._total, left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def trial_begins(self, slot: Slot) -> None:
        """Name the case under way."""
        self._bar.update(self._task, description=f"{slot.case!s:<18}", left=self._time_left())

    def trial_ended(self, slot: Slot, trial: Trial) -> None:
        """Advance the bar, and say so where there is none or the trial failed."""
        self._left = [other for other in self._left if other.index != slot.index]
        self._walls[slot.case].append(trial.wall_seconds or 0.0)
        failed = trial.outcome.kind is OutcomeKind.FAILED
        self.failed += failed
        self._bar.update(self._task, advance=1, left=self._time_left())
        if failed or not self._console.is_terminal:
            place = f"[{self._total - len(self._left)}/{self._total}]"
            ending = f"FAILED: {trial.outcome.reason}" if failed else format_seconds(trial.wall_seconds or 0.0)
            left = self._time_left()
            text = f"{place} {slot.case}: {ending}" + (f", {left}" if left and not failed else "")
            self._console.print(escape(text), highlight=False, soft_wrap=True, style="red" if failed else None)

    def _time_left(self) -> str:
        """The sum over the slots left of their case's median so far; of all cases' for one not seen yet."""
        if not self._walls or not self._left:
            return ""
        medians = {case: statistics.median(walls) for case, walls in self._walls.items()}
        usual = statistics.mean(medians.values())
        seconds = sum(medians.get(slot.case, usual) for slot in self._left)
        return f"about {_rounded(seconds)} left"


def _rounded(seconds: float) -> str:
    """A guess with no more figures than it deserves: 7 s, 50 s, 3 min."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds, -1):.0f} s" if seconds < 95 else f"{round(seconds / 60)} min"
