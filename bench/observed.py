"""What the finished trials of a result say, as figures: a median with its interval, or why there is none.

Only trials that ended ``ok`` count. Within a trial the rounds after the warm-up are reduced to their
median first; the trial is the unit of every statistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench import stats
from bench.metrics import IMAGE, IMAGE_USED, IMAGE_VIRTUAL, INSTANCE_DISK
from bench.model import Case, Metric, OutcomeKind, Trial
from bench.result import DriverRecord, Result, WorkloadRecord
from bench.stats import Estimate

BASE: Final = "native"
STUDIES: Final = ("lifecycle", "density", "minimum")
"""Loads whose trials start several instances, or one that is not left alone: no start is read from them."""
IDLE_WORKLOAD: Final = "boot"
IMAGE_SIZES: Final = tuple(metric.name for metric in IMAGE if metric is not INSTANCE_DISK)
"""What is known of an image without starting it; ``DriverRecord`` has it under the same names."""


@dataclass(frozen=True)
class Figure:
    """One figure of a report: an estimate, or ``missing``, the reason there is none.

    ``detail`` says which of several the figure is, where its definition picks one.
    """

    estimate: Estimate | None
    missing: str = ""
    detail: str = ""


class Observed:
    """Looks figures up in one result; see the module for what counts."""

    def __init__(self, result: Result) -> None:
        """Index the samples of every finished trial."""
        self.header = result.header
        self.drivers: dict[str, DriverRecord] = {driver.name: driver for driver in result.header.drivers}
        self.base = BASE if BASE in self.drivers else None
        self.throughput: dict[str, tuple[Metric, ...]] = {
            workload.name: found
            for workload in result.header.workloads
            if (found := tuple(metric for metric in workload.metrics if metric.direction == "higher"))
        }
        self.idle = _idle_workloads(result.header.workloads)
        self._trials = result.trials
        self._values: dict[tuple[str, str, str], list[float]] = {}
        for trial in result.trials:
            if trial.outcome.kind is OutcomeKind.OK:
                for metric, value in trial_values(trial).items():
                    self._values.setdefault((trial.case.workload, trial.case.driver, metric), []).append(value)

    def values(self, workload: str, driver: str, metric: str) -> Sequence[float]:
        """Return one value for each finished trial that has the metric."""
        return self._values.get((workload, driver, metric), ())

    def figure(self, workload: str, driver: str, metric: str) -> Figure:
        """Return the median of ``metric`` over the trials of one case."""
        values = self.values(workload, driver, metric)
        if not values:
            return Figure(None, self.why_missing(workload, driver, metric))
        return _figure(stats.estimate(values, self._seed(workload, driver, metric)), "the figures are too large")

    def ratio(self, workload: str, driver: str, base: str, metric: str) -> Figure:
        """Return the figure of ``driver`` divided by that of ``base``."""
        pair = self._pair(workload, driver, base, metric)
        if isinstance(pair, str):
            return Figure(None, pair)
        return _figure(
            stats.ratio(*pair, self._seed(workload, driver, base, metric)),
            "a ratio needs positive figures",
        )

    def size(self, driver: str, metric: str) -> Figure:
        """Return one of the sizes of the image that ``driver`` starts, or the median of what an idle instance adds."""
        if metric not in IMAGE_SIZES:
            return self.figure(self.idle[0], driver, metric) if self.idle else Figure(None, "no workloads")
        record = self.drivers.get(driver)
        count = getattr(record, metric) if record is not None else None
        if count is not None:
            return Figure(stats.counted(count))
        of_a_disk = metric in (IMAGE_USED.name, IMAGE_VIRTUAL.name) and record is not None and record.kind != "vm"
        return Figure(
            None, "it starts from a folder, not from a disk" if of_a_disk else "the driver does not know this size"
        )

    def size_ratio(self, driver: str, base: str, metric: str) -> Figure:
        """Return an image size of ``driver`` divided by that of ``base``."""
        if metric not in IMAGE_SIZES and self.idle:
            return self.ratio(self.idle[0], driver, base, metric)
        mine, other = self.size(driver, metric), self.size(base, metric)
        if mine.estimate is None or other.estimate is None:
            return mine if mine.estimate is None else other
        if other.estimate.value <= 0:
            return Figure(None, "a ratio needs positive figures")
        return Figure(stats.counted(mine.estimate.value / other.estimate.value))

    def performance(self, driver: str, base: str, only: str | None = None) -> Figure:
        """Return the throughput of ``driver`` relative to ``base``, over all workloads or one of them.

        The geometric mean over workloads, of the geometric mean over each workload's throughput
        metrics. A single missing figure makes it missing: a mean over fewer would be another figure.
        """
        names = [name for name in self.throughput if only in (None, name)]
        if not names:
            return Figure(None, f"no throughput of the workload {only}" if only else "no workload has a throughput")
        groups: list[list[stats.Pair]] = []
        for name in names:
            pairs = [self._pair(name, driver, base, metric.name) for metric in self.throughput[name]]
            if gap := next((pair for pair in pairs if isinstance(pair, str)), None):
                return Figure(None, gap)
            groups.append([pair for pair in pairs if not isinstance(pair, str)])
        return _figure(
            stats.mean_ratio(groups, self._seed("performance", driver, base, *names)),
            "a ratio needs positive figures",
        )

    def worst(self, driver: str, base: str) -> Figure:
        """Return the lowest throughput of ``driver`` relative to ``base``, and which metric that is."""
        found: list[tuple[float, Figure]] = []
        for workload, metrics in self.throughput.items():
            for metric in metrics:
                figure = self.ratio(workload, driver, base, metric.name)
                if figure.estimate is None:
                    return figure
                detail = f"{workload}: {metric.title}"
                found.append((figure.estimate.value, Figure(figure.estimate, detail=detail)))
        return min(found, key=lambda entry: entry[0])[1] if found else Figure(None, "no workload has a throughput")

    def finished(self, workloads: Sequence[str], driver: str) -> list[Trial]:
        """Return the trials of ``driver`` that ended ok, in the order of the schedule."""
        mine = [trial for trial in self._trials if trial.case.driver == driver and trial.case.workload in workloads]
        return sorted((trial for trial in mine if trial.outcome.kind is OutcomeKind.OK), key=lambda trial: trial.index)

    def taken(self, workload: str) -> bool:
        """Whether any trial of ``workload`` was recorded, whatever came of it."""
        return any(trial.case.workload == workload for trial in self._trials)

    def estimate(self, values: Sequence[float], *name: str) -> Estimate | None:
        """Return the median of ``values``, one for each trial; ``name`` seeds its interval."""
        return stats.estimate(values, self._seed(*name)) if values else None

    def start(self, workload: str, driver: str) -> Sequence[float]:
        """Return the seconds from spawned to ready of every finished trial of one case."""
        events = [
            {event.name: event.at_seconds for event in trial.events} for trial in self.finished((workload,), driver)
        ]
        return [at["ready"] - at["spawned"] for at in events if {"ready", "spawned"} <= set(at)]

    def slowest_start(self, driver: str, base: str | None = None) -> Figure:
        """Return the longest start to ready among the workloads, or its quotient by ``base``'s longest."""
        mine = self._slowest(driver)
        if isinstance(mine, str):
            return Figure(None, mine)
        name, values = mine
        if base is None:
            return _figure(stats.estimate(values, self._seed("slowest", driver)), "the figures are too large", name)
        other = self._slowest(base)
        if isinstance(other, str):
            return Figure(None, other)
        seed = self._seed("slowest", driver, base)
        return _figure(stats.ratio(values, other[1], seed), "a ratio needs positive figures", f"{name} ÷ {other[0]}")

    def _slowest(self, driver: str) -> tuple[str, Sequence[float]] | str:
        starts: dict[str, Sequence[float]] = {}
        for workload in self.header.workloads:
            if workload.load in STUDIES:
                continue
            starts[workload.name] = self.start(workload.name, driver)
            if not starts[workload.name]:
                return self.why_missing(workload.name, driver)
        if not starts:
            return "no workloads"
        name = max(starts, key=lambda workload: stats.median(starts[workload]))
        return name, starts[name]

    def _pair(self, workload: str, driver: str, base: str, metric: str) -> stats.Pair | str:
        """Return the trials of both sides, or why one of them is missing."""
        for side in (driver, base):
            if not self.values(workload, side, metric):
                return f"{side} has no figure for {workload}: {self.why_missing(workload, side, metric)}"
        return self.values(workload, driver, metric), self.values(workload, base, metric)

    def why_missing(self, workload: str, driver: str, metric: str = "") -> str:
        """Return why one case has no figure, or not that of ``metric``."""
        mine = [trial for trial in self._trials if trial.case.workload == workload and trial.case.driver == driver]
        if workload not in {record.name for record in self.header.workloads}:
            return f"the workload {workload} was not part of the suite"
        if not mine:
            planned = any(slot.case == Case(workload, driver) for slot in self.header.schedule)
            return "no trial of it was recorded" if planned else "the suite leaves this case out"
        failed = [trial for trial in mine if trial.outcome.kind is not OutcomeKind.OK]
        if len(failed) < len(mine):
            told = (trial.missing.get(metric, "") for trial in mine)
            return next(filter(None, told), "its trials did not record this metric")
        many = "its only trial" if len(mine) == 1 else f"all its {len(mine)} trials"
        return f"{many} {failed[0].outcome.kind}: {failed[0].outcome.reason}"

    def _seed(self, *parts: str) -> int:
        return stats.seed_of(self.header.result_id, *parts)


def trial_values(trial: Trial) -> dict[str, float]:
    """Return one value for each metric of a trial: the median of its samples outside the warm-up."""
    samples: dict[str, list[float]] = {}
    for sample in trial.samples:
        if not sample.warmup:
            samples.setdefault(sample.metric, []).append(sample.value)
    return {metric: stats.median(values) for metric, values in samples.items()}


def _idle_workloads(workloads: Sequence[WorkloadRecord]) -> tuple[str, ...]:
    """The workload of start and idle memory: ``boot``, else the first without load, else the first not a study."""
    names = [workload.name for workload in workloads if workload.load not in STUDIES]
    without_load = [workload.name for workload in workloads if workload.load == "none"]
    for choice in ([name for name in names if name == IDLE_WORKLOAD], without_load[:1]):
        if choice:
            return tuple(choice)
    return tuple(names[:1])


def _figure(estimate: Estimate | None, otherwise: str, detail: str = "") -> Figure:
    return Figure(None, otherwise) if estimate is None else Figure(estimate, detail=detail)
