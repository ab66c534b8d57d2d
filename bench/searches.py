"""The searches for the least memory that an instance needs, attempt by attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench import metrics
from bench.model import OutcomeKind, Trial
from bench.result import Result


@dataclass(frozen=True)
class Attempt:
    """One instance with ``limit_bytes`` of memory, and whether the workload completed in it."""

    limit_bytes: float
    completed: bool


@dataclass(frozen=True)
class Search:
    """The attempts of one trial in the order they were made."""

    workload: str
    driver: str
    trial: int
    attempts: tuple[Attempt, ...]


def searches(result: Result, drivers: Sequence[str]) -> tuple[Search, ...]:
    """Return the searches of ``result``, by workload, then in the order of ``drivers``."""
    loads = [workload.name for workload in result.header.workloads if workload.load == "minimum"]
    found = [
        Search(trial.case.workload, trial.case.driver, trial.index, attempts)
        for trial in result.trials
        if trial.case.workload in loads and trial.case.driver in drivers and trial.outcome.kind is OutcomeKind.OK
        if (attempts := _attempts(trial))
    ]
    return tuple(sorted(found, key=lambda one: (loads.index(one.workload), drivers.index(one.driver), one.trial)))


def _attempts(trial: Trial) -> tuple[Attempt, ...]:
    limits = _by_round(trial, metrics.MINIMUM_ATTEMPT.name)
    completed = _by_round(trial, metrics.MINIMUM_COMPLETED.name)
    return tuple(Attempt(limits[number], completed[number] > 0) for number in sorted(limits.keys() & completed.keys()))


def _by_round(trial: Trial, metric: str) -> dict[int, float]:
    return {
        sample.round: sample.value for sample in trial.samples if sample.metric == metric and sample.round is not None
    }
