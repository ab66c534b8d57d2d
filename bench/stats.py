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
    """A straight line's slope by least squares, with its standard error and 95 % confidence interval.

    ``standard_error``, ``low`` and ``high`` are ``None`` where there are no more points than the lines have parameters.
    ``points`` is what it was fitted to, in ``trials`` groups.
    """

    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    points: int
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
    """Fit one slope to the points (x, y) of all ``trials`` by least squares; each trial's line has a height of its own.

    Each trial's points are taken relative to their mean, which is the same as an intercept for each; those intercepts
    are counted among the parameters (Wooldridge 2020, section 14-1). The interval is Student's, and holds if the
    points' deviations are independent and alike. ``None`` where no two points of a trial differ in x, or it overflows.
    """
    groups = [np.asarray(points, dtype=float) for points in trials if len(points)]
    if not groups:
        return None
    with np.errstate(all="ignore"):  # what overflows is found below, and is no figure
        x, y = np.concatenate([group - group.mean(axis=0) for group in groups]).T
        spread = float(x @ x)
        if spread <= 0:
            return None
        value = float(x @ y) / spread
        deviations = y - value * x
        freedom = len(x) - len(groups) - 1
        if freedom < 1:
            return Slope(value, None, None, None, len(x), len(groups)) if np.isfinite(value) else None
        error = float(np.sqrt(deviations @ deviations / freedom / spread))
    if not (np.isfinite(value) and np.isfinite(error)):
        return None
    margin = error * _student(freedom)
    return Slope(value, error, value - margin, value + margin, len(x), len(groups))


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
