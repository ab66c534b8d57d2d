"""Looking for the smallest limit that suffices, where attempts with one limit may end now this way, now that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.errors import InstanceError

REPEATS: Final = 2
"""How often each of the two limits that the answer lies between is attempted; contradictions are, once more."""
MAX_ATTEMPTS: Final = 40


@dataclass(frozen=True)
class Smallest:
    """``limit`` is the smallest that suffices.

    ``unsteady`` is how far the limits reach that attempts contradict each other about: from the largest that failed
    down to the one below the smallest that completed; 0 if there are none.
    """

    limit: int
    unsteady: int


def smallest(limits: Sequence[int], completes: Callable[[int], bool]) -> Smallest:
    """Find the smallest of the ascending ``limits`` which suffices, and above which none fails.

    A limit suffices if it ``completes`` more often than not. The largest is attempted first and taken to suffice if
    it does; below the smallest is nothing that could.

    Raises:
        InstanceError: the largest fails most times, or attempts contradict each other for too long.
    """
    votes: dict[int, list[bool]] = {}
    while (index := _next(votes, len(limits) - 1)) is not None:
        if sum(map(len, votes.values())) == MAX_ATTEMPTS:
            raise InstanceError(f"{MAX_ATTEMPTS} attempts contradict each other", hint="is the host busy otherwise?")
        votes.setdefault(index, []).append(completes(limits[index]))
    low, high = _ends(votes)
    if high is None:
        raise InstanceError(f"it mostly fails with a limit of {limits[low]} bytes", hint="raise the suite's limit")
    failed = max((index for index, ended in votes.items() if not all(ended)), default=-1)
    completed = min(index for index, ended in votes.items() if any(ended))
    below = limits[completed - 1] if completed else 0
    return Smallest(limits[high], limits[failed] - below if failed >= completed else 0)


def _next(votes: Mapping[int, Sequence[bool]], top: int) -> int | None:
    """Which limit to attempt next, by its index; ``None`` once the answer is known."""
    if not votes:
        return top
    for index, ended in votes.items():
        if 2 * sum(ended) == len(ended):
            return index
    low, high = _ends(votes)
    if high is None:
        return None
    if high - low > 1:
        return (low + high) // 2
    return next((index for index in (high, low) if index >= 0 and len(votes[index]) < REPEATS), None)


def _ends(votes: Mapping[int, Sequence[bool]]) -> tuple[int, int | None]:
    """The largest limit known to fail, -1 if none, and the smallest above it known to suffice."""
    verdicts = {index: 2 * sum(ended) > len(ended) for index, ended in votes.items()}
    low = max((index for index, suffices in verdicts.items() if not suffices), default=-1)
    return low, min((index for index, suffices in verdicts.items() if suffices and index > low), default=None)
