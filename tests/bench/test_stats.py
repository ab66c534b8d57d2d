"""The bootstrap: its properties, and that it gives scipy's figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
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


POINTS = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e6, 1e6)), min_size=3, max_size=9)


@settings(max_examples=60, deadline=None)
@given(st.lists(POINTS, min_size=2, max_size=5))
def test_a_slope_is_the_mean_of_the_trials_own_with_students_interval_over_them(trials) -> None:
    from scipy.stats import sem, t

    assume(all(np.ptp([x for x, _ in points]) > 1 for points in trials))
    own = [np.polyfit(*np.asarray(points).T, deg=1)[0] for points in trials]
    found = stats.slope(trials)
    assert found is not None
    assert found.standard_error is not None
    scale = 1e-6 * max(abs(y) for points in trials for _, y in points)
    assert found.value == pytest.approx(np.mean(own), rel=1e-6, abs=scale)
    assert found.standard_error == pytest.approx(sem(own), rel=1e-6, abs=scale)
    margin = found.standard_error * t.ppf(0.975, len(trials) - 1)
    assert (found.low, found.high) == pytest.approx((found.value - margin, found.value + margin), rel=1e-9, abs=1e-9)
    assert found.trials == len(trials)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=5), min_size=1, max_size=4))
def test_trials_alike_in_x_have_the_slope_of_a_regression_with_an_intercept_for_each(heights) -> None:
    y = np.asarray(heights)
    design = np.zeros((y.size, len(y) + 1))
    design[:, 0] = np.tile(range(5), len(y))
    design[np.arange(y.size), np.repeat(np.arange(1, len(y) + 1), 5)] = 1
    solution, *_ = np.linalg.lstsq(design, y.ravel(), rcond=None)
    found = stats.slope([list(enumerate(row)) for row in heights])
    assert found is not None
    assert found.value == pytest.approx(solution[0], rel=1e-6, abs=1e-6 * (np.abs(y).max() + 1))


@settings(max_examples=40, deadline=None)
@given(st.lists(POINTS, min_size=1, max_size=4), st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_how_high_each_trial_lies_changes_no_slope(trials, heights: list[float]) -> None:
    assume(any(np.ptp([x for x, _ in points]) > 1 for points in trials))
    lifted = [[(x, y + heights[place]) for x, y in points] for place, points in enumerate(trials)]
    plain, other = stats.slope(trials), stats.slope(lifted)
    assert plain is not None
    assert other is not None
    assert other.value == pytest.approx(plain.value, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("accumulate", [np.asarray, np.cumsum], ids=["independent", "random walk"])
@pytest.mark.parametrize("trials", [2, 5])
def test_the_interval_of_a_slope_covers_the_truth_as_often_as_it_says_also_under_a_random_walk(
    accumulate, trials: int
) -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(600):
        noise = [accumulate(generator.normal(0, 2, 6)) for _ in range(trials)]
        found = stats.slope(
            [[(x, 5.0 * x + 100 * place + row[x]) for x in range(6)] for place, row in enumerate(noise)]
        )
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 5.0 <= found.high
    assert 0.925 <= covered / 600 <= 0.975


def test_a_single_trial_has_a_slope_and_no_error() -> None:
    assert stats.slope([[(0, 1), (2, 5), (4, 8)]]) == stats.Slope(1.75, None, None, None, 1)


def test_a_trial_without_direction_does_not_count() -> None:
    assert stats.slope([[(0, 1), (2, 5)], [(1, 1)], []]) == stats.Slope(2.0, None, None, None, 1)


@pytest.mark.parametrize("trials", [[], [[]], [[(1, 1)]], [[(1, 1), (1, 2)], [(2, 5)]]])
def test_what_has_no_direction_has_no_slope(trials) -> None:
    assert stats.slope(trials) is None


def test_what_overflows_has_no_slope() -> None:
    assert stats.slope([[(0, 1e308), (1e-300, -1e308), (2e-300, 0)]]) is None
