"""Medians with their uncertainty by the percentile bootstrap over trials (Efron & Tibshirani 1993, ch. 13), and slopes.

The trial is the unit: rounds of one trial share an instance and are not independent. The same
figures as ``scipy.stats.bootstrap(method="percentile")``, which a test holds, without the second
that importing scipy.stats takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 9_999
CONFIDENCE: Final = 0.95

Array = NDArray[Any]
Pair = tuple[Sequence[float], Sequence[float]]
"""One quantity on two sides: the trials of a case, and those of the case it is divided by."""


@dataclass(frozen=True)
class Estimate:
    """A median or a quotient of medians with its 95 % confidence interval.

    ``low`` and ``high`` are ``None`` where fewer than two trials leave no spread to judge by.
    ``trials`` counts what it rests on, the smaller side of a quotient; 0 is a counted quantity,
    such as a file's size, that has no spread.
    """

    value: float
    low: float | None
    high: float | None
    trials: int


@dataclass(frozen=True)
class Slope:
    """The mean of the slopes that ``trials`` have, with its standard error and 95 % confidence interval.

    ``standard_error``, ``low`` and ``high`` are ``None`` where a single trial leaves no spread to judge by.
    """

    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    trials: int

    @property
    def estimate(self) -> Estimate:
        """The same without its standard error."""
        return Estimate(self.value, self.low, self.high, self.trials)


def counted(value: float) -> Estimate:
    """Return an exact quantity as an estimate without spread."""
    return Estimate(value, value, value, 0)


def seed_of(*parts: str) -> int:
    """Return a seed that depends on nothing but ``parts``, alike in every process."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).digest()[:8])


def best_coverage(trials: int) -> float:
    """Return how often at most an interval over so few trials holds the true median.

    The bootstrap of a median never leaves the range of what was measured, and that range holds the
    median with probability 1 - 2**(1 - trials) (David & Nagaraja, Order Statistics, section 7.1).
    """
    return min(CONFIDENCE, 1 - 2.0 ** (1 - trials))


def median(values: Sequence[float]) -> float:
    """Return the median of at least one value."""
    return float(np.median(np.asarray(values, dtype=float)))


def estimate(values: Sequence[float], seed: int) -> Estimate | None:
    """Return the median over trials, or ``None`` where it cannot be held in a float."""
    return _bootstrap([values], lambda medians: medians[0], seed)


def ratio(values: Sequence[float], base: Sequence[float], seed: int) -> Estimate | None:
    """Return the median of ``values`` over the median of ``base``; trials of both sides are resampled.

    ``None`` where a quotient means nothing: a base that is not positive, or a negative value.
    """
    return mean_ratio([[(values, base)]], seed)


def mean_ratio(groups: Sequence[Sequence[Pair]], seed: int) -> Estimate | None:
    """Return the geometric mean over ``groups`` of the geometric mean of each group's ratios.

    A group is a workload, its pairs are that workload's metrics: each workload weighs the same,
    however many metrics it reports. ``None`` as for ``ratio``.
    """
    pairs = [pair for group in groups for pair in group]
    if any(min(base) <= 0 or min(values) < 0 for values, base in pairs):
        return None
    weights = [1 / len(groups) / len(group) for group in groups for _ in group]

    def quotient(medians: list[Array]) -> Array:
        product: Array = np.ones_like(medians[0])
        for place, weight in enumerate(weights):
            product = product * (medians[2 * place] / medians[2 * place + 1]) ** weight
        return product

    return _bootstrap([side for pair in pairs for side in pair], quotient, seed)


def slope(trials: Sequence[Sequence[tuple[float, float]]]) -> Slope | None:
    """Fit a slope to the points (x, y) of each trial by least squares, and return the mean of these slopes.

    The interval is Student's over the trials' slopes. How far the points lie from their line is no measure of it:
    each reading builds on the one before, and so does its error, which a regression over all points takes for
    independent (the summary measures of Matthews et al. 1990, BMJ 300, 230). Trials without two points that differ in
    x have no slope and do not count. ``None`` where none is left, or it overflows.
    """
    with np.errstate(all="ignore"):  # what overflows is found below, and is no figure
        found = np.asarray([fitted for points in trials if (fitted := _slope(points)) is not None])
        if not len(found):
            return None
        value = float(found.mean())
        error = float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else None
    if not np.isfinite([value, error or 0.0]).all():
        return None
    if error is None:
        return Slope(value, None, None, None, 1)
    margin = error * _student(len(found) - 1)
    return Slope(value, error, value - margin, value + margin, len(found))


def _slope(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of the line through one trial's points; ``None`` where no two differ in x."""
    if not len(points):
        return None
    x, y = (np.asarray(points, dtype=float) - np.mean(points, axis=0)).T
    spread = float(x @ x)
    return float(x @ y) / spread if spread > 0 else None


def _student(freedom: int) -> float:
    """The quantile of Student's distribution that leaves 5 % outside, half on each side."""
    from scipy.special import stdtrit  # takes a tenth of the time that scipy.stats does

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _bootstrap(
    sides: Sequence[Sequence[float]], statistic: Callable[[list[Array]], Array], seed: int
) -> Estimate | None:
    """Apply ``statistic`` to the sides' medians, as measured and resampled ``RESAMPLES`` times."""
    generator = np.random.default_rng(seed)
    # sorted, so that the order in which trials ran changes nothing
    ordered = [np.sort(np.asarray(side, dtype=float)) for side in sides]
    trials = min(map(len, ordered))
    with np.errstate(all="ignore"):  # what overflows is found below, and is no figure
        value = float(statistic([np.median(side, keepdims=True) for side in ordered])[0])
        if not np.isfinite(value):
            return None
        if trials < 2:
            return Estimate(value, None, None, trials)
        low, high = np.quantile(
            statistic([_resampled_medians(side, generator) for side in ordered]),
            [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2],
        )
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    return Estimate(value, float(low), float(high), trials)


def _resampled_medians(side: Array, generator: np.random.Generator) -> Array:
    picks = generator.integers(0, len(side), (RESAMPLES, len(side)))
    medians: Array = np.median(side[picks], axis=1)
    return medians
