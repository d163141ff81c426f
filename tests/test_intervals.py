"""Intervals that cover, tests that are exact, and silence where there are too few identities."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from pogdiff_cli.metrics import intervals
from pogdiff_cli.metrics.features import Array
from pogdiff_cli.metrics.intervals import (
    bootstrap_mean,
    holm,
    jackknife_spread,
    paired_difference,
    percentiles,
    sign_flip_p,
)


def drawn(shape: str, size: tuple[int, int], rng: np.random.Generator) -> tuple[Array, float]:
    """Scores of identities as they come, and their true mean."""
    if shape == "normal":
        return rng.standard_normal(size) + 0.5, 0.5
    if shape == "accuracy":  # of 20 images, each person with a chance of its own
        return rng.binomial(20, rng.beta(2, 2, size)) / 20, 0.5
    if shape == "rare success":
        return rng.binomial(20, rng.beta(0.5, 2, size)) / 20, 0.2
    if shape == "recall of two":  # 0, a half or 1: two training images
        return rng.binomial(2, rng.beta(1, 1, size)) / 2, 0.5
    return rng.lognormal(0, 0.5, size), float(np.exp(0.125))  # a distance: positive, with a long tail


SHAPES = ("normal", "accuracy", "rare success", "recall of two", "distance")


def coverage(shape: str, n: int, *, trials: int = 3000) -> float:
    """How often the 95 % interval over n identities holds the true mean."""
    values, truth = drawn(shape, (trials, n), np.random.default_rng(7))
    low, high = percentiles(values, seed=1, level=0.95, resamples=1000)
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.parametrize("shape", SHAPES)
def test_over_sixty_identities_intervals_cover_the_truth_as_often_as_they_say(shape: str) -> None:
    assert 0.92 <= coverage(shape, 60) <= 0.98


@pytest.mark.parametrize("shape", SHAPES)
def test_ten_identities_are_the_fewest_over_which_intervals_still_nearly_hold(shape: str) -> None:
    assert 0.90 <= coverage(shape, 10) <= 0.98


def test_below_ten_identities_an_interval_would_promise_too_much() -> None:
    """Why there is none."""
    assert min(coverage(shape, 5) for shape in SHAPES) < 0.9


def test_what_is_simulated_is_what_is_printed() -> None:
    values = np.random.default_rng(3).standard_normal((4, 25))
    low, high = percentiles(values, seed=5, level=0.9, resamples=500)
    for row, bounds in enumerate(zip(low, high, strict=True)):
        interval = bootstrap_mean(values[row], seed=5, level=0.9, resamples=500)
        assert (interval.low, interval.high) == pytest.approx(bounds, abs=1e-12)


def test_many_identities_are_drawn_in_parts_of_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).standard_normal(300)
    whole = bootstrap_mean(values, seed=0)
    monkeypatch.setattr(intervals, "_ENTRIES", 300 * 64)
    assert bootstrap_mean(values, seed=0) == whole


def test_fewer_than_ten_identities_get_a_reason_instead_of_an_interval() -> None:
    interval = bootstrap_mean([0.1] * 9, seed=0)
    assert (interval.low, interval.high, interval.method) == (None, None, None)
    assert interval.value == pytest.approx(0.1)
    assert interval.reason is not None
    assert "9 identities" in interval.reason


def test_no_value_at_all_is_said_so() -> None:
    assert bootstrap_mean([], seed=0).reason == "no identity has a value"


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).standard_normal(30)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_pairing_removes_what_the_identities_have_in_common() -> None:
    rng = np.random.default_rng(1)
    hard = 10 * rng.standard_normal(20)
    result = paired_difference(hard, hard + 1 + 0.1 * rng.standard_normal(20), seed=0)
    assert result.interval.low is not None
    assert result.interval.high is not None
    assert 0.9 < result.interval.low < 1 < result.interval.high < 1.1
    assert result.p is not None
    assert result.p < 0.001


def test_unpaired_lengths_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="match"):
        paired_difference([1.0], [1.0, 2.0], seed=0)


@pytest.mark.parametrize(("n", "expected"), [(1, 1.0), (3, 0.25), (10, 2 / 1024)])
def test_sign_flips_of_equal_differences_leave_two_extreme_patterns(n: int, expected: float) -> None:
    assert sign_flip_p([0.3] * n, seed=0) == pytest.approx(expected)


def test_no_difference_has_p_one() -> None:
    assert sign_flip_p([0.0] * 12, seed=0) == 1.0
    assert sign_flip_p([0.0] * 40, seed=0) == 1.0


def test_drawn_flips_agree_with_the_exact_distribution() -> None:
    """Differences of +-1: the sum's distribution is binomial. 20 identities, 15 up: P(|S| >= 10)."""
    exact = 2 * sum(comb(20, up) for up in range(15, 21)) / 2**20
    assert sign_flip_p([1.0] * 15 + [-1.0] * 5, seed=0) == pytest.approx(exact, rel=0.1)


def test_p_is_uniform_where_nothing_changed() -> None:
    rng = np.random.default_rng(2)
    values = [sign_flip_p(rng.standard_normal(10), seed=0) for _ in range(400)]
    assert np.mean(np.array(values) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_jackknife_of_leave_one_out_means_is_the_standard_error_of_the_mean() -> None:
    values = np.random.default_rng(3).standard_normal(8)
    left_out = [float(np.delete(values, i).mean()) for i in range(8)]
    assert jackknife_spread(left_out) == pytest.approx(values.std(ddof=1) / np.sqrt(8))
    assert jackknife_spread([1.0]) is None
