"""How quantities grow with the number of instances that run: the readings of a density workload's trials, as slopes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench import stats
from bench.model import Metric, Trial
from bench.observed import Figure

Series = Mapping[int, float]
"""Bytes by the number of instances that ran."""


class Readings:
    """The samples of one trial, by metric and number of instances."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self._values: dict[str, dict[int, list[float]]] = {}
        for sample in trial.samples:
            if sample.round is not None:
                self._values.setdefault(sample.metric, {}).setdefault(sample.round, []).append(sample.value)
        self.instances = max((max(rounds) for rounds in self._values.values()), default=0)

    def host(self, metric: Metric) -> Series | None:
        """One value of the host's for each number of instances; ``None`` where one is missing."""
        found = {count: values[0] for count, values in self._values.get(metric.name, {}).items()}
        return found if len(found) == self.instances + 1 else None

    def summed(self, metric: Metric) -> Series | None:
        """The sum over the instances that ran at each reading; ``None`` where one of them has no value."""
        found = self._values.get(metric.name, {})
        if any(len(found.get(count, ())) != count for count in range(self.instances + 1)):
            return None
        return {count: sum(found.get(count, ())) for count in range(self.instances + 1)}


@dataclass(frozen=True)
class Quantity:
    """Something that may grow with the number of instances, what it is computed from, and how of one trial."""

    name: str
    definition: str
    metrics: tuple[str, ...]
    read: Callable[[Readings], Series | None]


def of_host(metric: Metric) -> Quantity:
    """The host's ``metric``."""
    return Quantity(metric.title, metric.definition, (metric.name,), lambda readings: readings.host(metric))


def of_instances(metric: Metric) -> Quantity:
    """The sum of ``metric`` over the instances."""
    return Quantity(metric.title, metric.definition, (metric.name,), lambda readings: readings.summed(metric))


def less(name: str, definition: str, whole: Quantity, *parts: Quantity) -> Quantity:
    """What ``parts`` leave of ``whole`` at each reading."""

    def read(readings: Readings) -> Series | None:
        series = whole.read(readings)
        others = [other for part in parts if (other := part.read(readings)) is not None]
        return None if series is None or len(others) < len(parts) else _minus(series, others)

    return Quantity(name, definition, (*whole.metrics, *(metric for part in parts for metric in part.metrics)), read)


class Growth:
    """Mean slopes over the ``trials`` of one case, at least one."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._all = [Readings(trial) for trial in trials]
        self.instances = max(readings.instances for readings in self._all)

    def has(self, quantity: Quantity) -> bool:
        """Whether every trial tells ``quantity``: slopes of different trials would not add up."""
        return self._series(quantity) is not None

    def slope(self, quantity: Quantity) -> Figure:
        """Return how many bytes of ``quantity`` one more instance adds."""
        series = self._series(quantity)
        return Figure(None, self.reason(quantity.metrics)) if series is None else _slope(series)

    def residue(self, total: Quantity, parts: Sequence[Quantity]) -> Figure:
        """Return the slope of what those of ``parts`` that the trials tell leave of ``total``."""
        whole = self._series(total)
        if whole is None:
            return Figure(None, "there is no total")
        found = [series for part in parts if (series := self._series(part)) is not None]
        return _slope([_minus(of, [series[place] for series in found]) for place, of in enumerate(whole)])

    def above_base(self, total: Quantity) -> Iterator[tuple[int, int, float]]:
        """Yield index of the trial, number of instances and bytes above the reading without any."""
        for readings, series in zip(self._all, self._series(total) or (), strict=False):
            for count in sorted(series):
                yield readings.trial.index, count, series[count] - series[0]

    def reason(self, metrics: Sequence[str]) -> str:
        """Why one of ``metrics`` is missing, as the trials say; empty if they do not."""
        reasons = (readings.trial.missing.get(metric, "") for readings in self._all for metric in metrics)
        return next(filter(None, reasons), "")

    def _series(self, quantity: Quantity) -> list[Series] | None:
        found = [quantity.read(readings) for readings in self._all]
        whole = [series for series in found if series is not None]
        return whole if len(whole) == len(found) else None


def _slope(trials: Sequence[Series]) -> Figure:
    fitted = stats.slope([sorted(series.items()) for series in trials])
    return Figure(None, "there are too few readings for a slope") if fitted is None else Figure(fitted.estimate)


def _minus(series: Series, others: Sequence[Series]) -> Series:
    return {count: value - sum(other[count] for other in others) for count, value in series.items()}
