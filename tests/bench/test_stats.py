"""The bootstrap: its properties, and that it gives scipy's figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import stats

FIGURES = st.floats(min_value=1e-6, max_value=1e9, allow_nan=False)
TRIALS = st.lists(FIGURES, min_size=2, max_size=12)
SEEDS = st.integers(0, 2**63)


@settings(max_examples=60, deadline=None)
@given(TRIALS, SEEDS)
def test_the_interval_holds_the_median(values: list[float], seed: int) -> None:
    found = stats.estimate(values, seed)
    assert found is not None
    assert found.low <= found.value <= found.high
    assert min(values) <= found.low
    assert found.high <= max(values)


@settings(max_examples=60, deadline=None)
@given(TRIALS, TRIALS, SEEDS)
def test_the_interval_of_a_ratio_holds_the_ratio(values: list[float], base: list[float], seed: int) -> None:
    found = stats.ratio(values, base, seed)
    assert found is not None
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(np.median(values) / np.median(base))


@settings(max_examples=40, deadline=None)
@given(TRIALS, TRIALS, st.floats(1e-3, 1e3), SEEDS)
def test_scaling_one_side_scales_the_ratio_and_its_interval(
    values: list[float], base: list[float], factor: float, seed: int
) -> None:
    plain = stats.ratio(values, base, seed)
    scaled = stats.ratio([value * factor for value in values], base, seed)
    assert plain is not None
    assert scaled is not None
    for one, other in zip(_ends(plain), _ends(scaled), strict=True):
        assert other == pytest.approx(one * factor, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(TRIALS, TRIALS, st.randoms(use_true_random=False), SEEDS)
def test_the_order_of_trials_changes_nothing(values: list[float], base: list[float], generator, seed: int) -> None:
    shuffled, other = list(values), list(base)
    generator.shuffle(shuffled)
    generator.shuffle(other)
    assert stats.estimate(shuffled, seed) == stats.estimate(values, seed)
    assert stats.ratio(shuffled, other, seed) == stats.ratio(values, base, seed)


@settings(max_examples=25, deadline=None)
@given(TRIALS, st.integers(0, 2**32))
def test_the_interval_is_scipys(values: list[float], seed: int) -> None:
    from scipy.stats import bootstrap

    ours = stats.estimate(values, seed)
    theirs = bootstrap(
        (np.sort(values),), np.median, n_resamples=stats.RESAMPLES, method="percentile", vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(TRIALS, TRIALS, st.integers(0, 2**32))
def test_the_interval_of_a_ratio_is_scipys(values: list[float], base: list[float], seed: int) -> None:
    from scipy.stats import bootstrap

    def quotient(one, other, axis=-1):
        return np.median(one, axis=axis) / np.median(other, axis=axis)

    ours = stats.ratio(values, base, seed)
    theirs = bootstrap(
        (np.sort(values), np.sort(base)), quotient, n_resamples=stats.RESAMPLES, method="percentile", vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    samples = generator.normal(100, 5, (400, 15))
    found = [stats.estimate(list(sample), seed) for seed, sample in enumerate(samples)]
    covered = sum(one is not None and one.low <= 100 <= one.high for one in found)
    assert 0.90 <= covered / len(samples) <= 0.99


@pytest.mark.parametrize("trials", [2, 3, 5])
def test_few_trials_cover_the_truth_no_oftener_than_said(trials: int) -> None:
    generator = np.random.default_rng(trials)
    found = [stats.estimate(list(sample), seed) for seed, sample in enumerate(generator.normal(0, 1, (400, trials)))]
    covered = sum(one is not None and one.low <= 0 <= one.high for one in found) / len(found)
    assert covered <= stats.best_coverage(trials) + 0.05


def test_one_trial_has_a_median_and_no_interval() -> None:
    assert stats.estimate([3.5], 1) == stats.Estimate(3.5, None, None, 1)
    assert stats.ratio([3.0], [1.5, 1.5], 1) == stats.Estimate(2.0, None, None, 1)


def test_a_ratio_to_nothing_is_no_figure() -> None:
    assert stats.ratio([1.0, 2.0], [0.0, 1.0], 1) is None
    assert stats.ratio([-1.0, 2.0], [1.0, 1.0], 1) is None


def test_a_throughput_of_zero_is_a_ratio_of_zero() -> None:
    found = stats.ratio([0.0, 0.0], [1.0, 2.0], 1)
    assert found == stats.Estimate(0.0, 0.0, 0.0, 2)


def test_what_overflows_is_no_figure() -> None:
    assert stats.estimate([1.7e308, 1.7e308], 1) is None
    assert stats.ratio([1e300, 1e300], [1e-300, 1e-300], 1) is None


def test_each_workload_weighs_the_same_however_many_metrics_it_has() -> None:
    one = ([4.0, 4.0], [1.0, 1.0])
    other = ([1.0, 1.0], [1.0, 1.0])
    found = stats.mean_ratio([[one], [other, other, other]], 1)
    assert found is not None
    assert found.value == pytest.approx(2.0)


def test_the_seed_depends_on_every_part_and_on_where_it_ends() -> None:
    assert (
        len({stats.seed_of("a", "bc"), stats.seed_of("ab", "c"), stats.seed_of("abc"), stats.seed_of("abc", "")}) == 4
    )


def test_the_seed_is_the_same_in_every_process() -> None:
    assert stats.seed_of("result", "cpu", "native") == 2971254477228103597


def _ends(found: stats.Estimate) -> tuple[float, float, float]:
    assert found.low is not None
    assert found.high is not None
    assert math.isfinite(found.low)
    return found.value, found.low, found.high
