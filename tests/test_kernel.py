"""KID and the k-nearest-neighbour shares against their definitions, written as loops."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.metrics import kernel
from pogdiff_cli.metrics.kernel import kernel_distance
from pogdiff_cli.metrics.prdc import prdc
from pogdiff_cli.metrics.raw import score_raw

Array = npt.NDArray[np.float64]


def k(x: Array, y: Array) -> float:
    return float((x @ y / len(x) + 1) ** 3)


def test_kernel_distance_equals_the_double_loop_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_BLOCK", 4)  # so that the last block is a partial one
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 5)), 0.4 + rng.standard_normal((6, 5))
    within_x = np.mean([k(x[i], x[j]) for i in range(9) for j in range(9) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(6) for j in range(6) if i != j])
    across = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)


def test_kernel_distance_of_one_distribution_averages_zero() -> None:
    rng = np.random.default_rng(1)
    values = [kernel_distance(rng.standard_normal((5, 3)), rng.standard_normal((4, 3))) for _ in range(2000)]
    numbers = np.array(values, dtype=float)
    assert abs(numbers.mean()) < 4 * numbers.std() / np.sqrt(len(numbers))
    assert (numbers < 0).any()


def test_a_single_image_has_no_kernel_distance() -> None:
    assert kernel_distance(np.zeros((1, 3)), np.zeros((5, 3))) is None


def test_shares_equal_their_definition_by_loops() -> None:
    rng = np.random.default_rng(2)
    real, fake, nearest_k = rng.standard_normal((12, 3)), 0.5 + rng.standard_normal((10, 3)), 3

    def ball(rows: Array, i: int) -> float:
        others = [float(np.linalg.norm(rows[i] - rows[j])) for j in range(len(rows)) if j != i]
        return sorted(others)[nearest_k - 1]

    def inside(rows: Array, i: int, point: Array) -> bool:
        return float(np.linalg.norm(rows[i] - point)) < ball(rows, i)

    result = prdc(real, fake, nearest_k=nearest_k)
    assert result is not None
    hits = [[inside(real, i, point) for i in range(12)] for point in fake]
    assert result.precision == pytest.approx(np.mean([any(row) for row in hits]))
    assert result.density == pytest.approx(np.mean([sum(row) for row in hits]) / nearest_k)
    assert result.coverage == pytest.approx(np.mean([any(inside(real, i, p) for p in fake) for i in range(12)]))
    assert result.recall == pytest.approx(np.mean([any(inside(fake, j, p) for j in range(10)) for p in real]))


@pytest.mark.parametrize(("n", "defined"), [(6, False), (7, True)])
def test_shares_need_two_images_more_than_neighbours(n: int, defined: bool) -> None:
    rng = np.random.default_rng(3)
    assert (prdc(rng.standard_normal((n, 2)), rng.standard_normal((20, 2)), nearest_k=5) is not None) == defined


def test_bare_features_are_scored_under_the_documented_keys() -> None:
    rng = np.random.default_rng(4)
    result = score_raw(rng.standard_normal((20, 4)), rng.standard_normal((20, 4)), ["fid", "kid", "prdc"])
    assert {"fid", "kid", "precision", "recall", "density", "coverage"} <= result.keys()
    assert all(value is not None for value in result.values())


def test_bare_features_cannot_tell_who_is_who() -> None:
    with pytest.raises(PogdiffError, match="identity"):
        score_raw(np.zeros((3, 2)), np.zeros((3, 2)), ["identity"])
