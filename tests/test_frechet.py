"""The Frechet distance against closed forms and against 40-digit arithmetic."""

from __future__ import annotations

import mpmath
import numpy as np
import numpy.typing as npt
import pytest

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.frechet import frechet

Array = npt.NDArray[np.float64]


def oracle(real: Array, fake: Array) -> float:
    """Textbook form in 40 digits: |dmu|^2 + tr S1 + tr S2 - 2 sum sqrt(eigenvalues of R S2 R^T), S1 = R^T R.

    R is the (n, d) root of S1, so R S2 R^T (n, n) is symmetric and has the non-zero eigenvalues of S1 S2.
    """
    with mpmath.workdps(40):
        x, y = mpmath.matrix(real.tolist()), mpmath.matrix(fake.tolist())
        mean_x, centred_x = _centre(x)
        mean_y, centred_y = _centre(y)
        cross = centred_x * centred_y.T
        eigenvalues = mpmath.eigsy(cross * cross.T, eigvals_only=True)
        nuclear = sum(mpmath.sqrt(max(value, mpmath.mpf(0))) for value in eigenvalues)
        traces = sum(v**2 for v in centred_x) + sum(v**2 for v in centred_y)
        gap = sum((a - b) ** 2 for a, b in zip(mean_x, mean_y, strict=True))
        return float(gap + traces - 2 * nuclear)


def _centre(rows: mpmath.matrix) -> tuple[list[mpmath.mpf], mpmath.matrix]:
    n, d = rows.rows, rows.cols
    mean = [sum(rows[i, j] for i in range(n)) / n for j in range(d)]
    scale = mpmath.sqrt(max(n - 1, 1))
    return mean, mpmath.matrix([[(rows[i, j] - mean[j]) / scale for j in range(d)] for i in range(n)])


@pytest.mark.parametrize(
    ("n", "m", "d"), [(2, 2, 5), (2, 7, 12), (9, 3, 4), (30, 12, 6), (12, 12, 12), (5, 20, 3), (4, 6, 1)]
)
def test_distance_agrees_with_forty_digits_whatever_the_rank(n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(n * 100 + m)
    real, fake = rng.standard_normal((n, d)), 0.3 + 1.7 * rng.standard_normal((m, d))
    assert frechet(real, fake).distance == pytest.approx(oracle(real, fake), rel=1e-12)


def test_axis_aligned_gaussians_follow_the_diagonal_formula() -> None:
    """Points at mean +- s_j e_j have a diagonal covariance: sum_j (mu gap)^2 + (sqrt v1 - sqrt v2)^2."""
    d = 6
    first, second = np.arange(1.0, d + 1), np.linspace(0.2, 3.0, d)
    real = np.concatenate([np.diag(first), -np.diag(first)]) + 2.0
    fake = np.concatenate([np.diag(second), -np.diag(second)]) - 1.0
    variance = 2 / (2 * d - 1)
    expected = 9.0 * d + variance * float(np.sum((first - second) ** 2))
    assert frechet(real, fake).distance == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1.001, 3.0])
def test_scaled_and_shifted_copy_has_distance_of_shift_plus_scaled_trace(scale: float) -> None:
    rng = np.random.default_rng(3)
    real = rng.standard_normal((40, 8))
    real -= real.mean(axis=0)
    shift = np.full(8, 0.25)
    result = frechet(real, scale * real + shift)
    trace = float(np.trace(np.cov(real, rowvar=False)))
    assert result.mean_part == pytest.approx(float(shift @ shift), rel=1e-12)
    assert result.trace_part == pytest.approx((1 - scale) ** 2 * trace, rel=1e-12)
    assert result.distance == pytest.approx(result.mean_part + result.trace_part, rel=1e-15)


def test_two_images_each_follow_the_closed_form_of_rank_one() -> None:
    """Two points give S = v v^T / 2: the trace part is (|v|^2 + |w|^2) / 2 - |v . w|."""
    v, w = np.array([3.0, 0.0, 4.0]), np.array([1.0, 2.0, -2.0])
    origin = np.array([5.0, 1.0, 0.0])
    result = frechet(np.stack([origin, origin + v]), np.stack([origin, origin + w]))
    assert result.trace_part == pytest.approx((25 + 9) / 2 - abs(float(v @ w)), rel=1e-12)
    assert result.mean_part == pytest.approx(float((v - w) @ (v - w)) / 4, rel=1e-12)


def test_a_set_has_no_distance_from_itself_in_another_order() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 16))
    assert frechet(rows, rows[::-1]).distance < 1e-25


def test_distance_is_symmetric_and_ignores_a_common_shift() -> None:
    rng = np.random.default_rng(1)
    real, fake = rng.standard_normal((20, 5)), rng.standard_normal((3, 5))
    forward = frechet(real, fake).distance
    assert frechet(fake, real).distance == pytest.approx(forward, rel=1e-12)
    assert frechet(real + 7.0, fake + 7.0).distance == pytest.approx(forward, rel=1e-11)


def test_one_image_has_no_covariance_and_so_no_unbiased_gap() -> None:
    real = np.array([[1.0, 0.0], [3.0, 0.0]])
    result = frechet(real, np.array([[2.0, 5.0]]))
    assert result.mean_gap_unbiased is None
    assert result.mean_part == 25.0
    assert result.trace_part == pytest.approx(2.0)


def test_mean_gap_is_unbiased_where_the_plain_one_is_not() -> None:
    """Two sets of four from one Gaussian: the mean part averages d (1/4 + 1/4), the unbiased gap zero."""
    rng = np.random.default_rng(5)
    results = [frechet(rng.standard_normal((4, 10)), rng.standard_normal((4, 10))) for _ in range(3000)]
    unbiased = np.array([r.mean_gap_unbiased for r in results], dtype=float)
    error = unbiased.std() / np.sqrt(len(unbiased))
    assert abs(unbiased.mean()) < 4 * error
    assert np.mean([r.mean_part for r in results]) == pytest.approx(5.0, rel=0.05)


@pytest.mark.parametrize(
    ("real", "fake"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4))),
        (np.zeros((0, 3)), np.zeros((2, 3))),
        (np.array([[np.nan, 1.0]]), np.zeros((2, 2))),
        (np.zeros(3), np.zeros((2, 3))),
    ],
)
def test_features_that_mean_nothing_are_refused_as_bad_data(real: Array, fake: Array) -> None:
    with pytest.raises(PogdiffError) as caught:
        frechet(real, fake)
    assert caught.value.exit_code is Exit.DATA
