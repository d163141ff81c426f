"""Drawing the neighbour of Eq. (8)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pogdiff_cli.data.draws import Stream, uniform
from pogdiff_cli.data.pairs import Pairs

SIMILARITIES = np.array([[0.9, 0.6, 0.3, 0.0]] * 5, dtype=np.float32)
WEIGHTS = SIMILARITIES.astype(np.float64) / SIMILARITIES.sum(axis=1, keepdims=True, dtype=np.float64)  # Eq. (8)
ROWS = np.array([[other for other in range(5) if other != row] for row in range(5)])


def pairs(**changes: object) -> Pairs:
    parts: dict[str, object] = {
        "rows": ROWS,
        "similarities": SIMILARITIES,
        "weights": WEIGHTS,
        "identity": np.array([0, 0, 1, 1, 2]),
        "texts": ["a", "a", "b", "a", "c"],
    }
    return Pairs(**{**parts, **changes})  # type: ignore[arg-type]


def test_neighbours_are_drawn_by_the_weights_of_equation_8() -> None:
    draws = 6000
    u = uniform(4, Stream.NEIGHBOUR, 0, np.arange(draws))
    drawn = pairs().draw(np.zeros(draws, dtype=np.int64), u)
    histogram = np.bincount(drawn.neighbour_row, minlength=5)[1:]
    assert histogram[3] == 0  # similarity 0: never drawn
    assert stats.chisquare(histogram[:3], np.array([0.5, 1 / 3, 1 / 6]) * draws).pvalue > 1e-3


def test_the_similarity_is_that_of_the_drawn_neighbour() -> None:
    drawn = pairs().draw(np.array([0, 0, 0, 0]), np.array([0.0, 0.4999, 0.51, 0.84]))
    assert drawn.neighbour_row.tolist() == [1, 1, 2, 3]
    assert drawn.similarity.tolist() == np.float32([0.9, 0.9, 0.6, 0.3]).tolist()


def test_identity_and_text_are_compared_with_those_of_the_record() -> None:
    drawn = pairs().draw(np.array([0, 0, 0]), np.array([0.1, 0.6, 0.9]))
    assert drawn.neighbour_row.tolist() == [1, 2, 3]
    assert drawn.same_identity.tolist() == [True, False, False]
    assert drawn.same_text.tolist() == [True, False, True]


def test_the_largest_draw_below_one_takes_the_last_neighbour_with_a_weight() -> None:
    # ten tenths do not sum to one in floating point
    n, k = 11, 10
    rows = np.array([[other for other in range(n) if other != row] for row in range(n)])
    many = pairs(
        rows=rows,
        similarities=np.full((n, k), 0.1, dtype=np.float32),
        weights=np.full((n, k), 0.1),
        identity=np.zeros(n),
        texts=["x"] * n,
    )
    assert many.draw(np.array([0]), np.array([np.nextafter(1.0, 0.0)])).neighbour_row.tolist() == [10]
    assert pairs().draw(np.array([0]), np.array([np.nextafter(1.0, 0.0)])).neighbour_row.tolist() == [3]
    first_is_zero = pairs(weights=WEIGHTS[:, ::-1])
    assert first_is_zero.draw(np.array([0]), np.array([0.0])).neighbour_row.tolist() == [2]


def test_one_column_of_uniforms_and_a_flat_one_mean_the_same() -> None:
    u = uniform(0, Stream.NEIGHBOUR, 0, np.arange(5))
    rows = np.arange(5)
    assert np.array_equal(pairs().draw(rows, u).neighbour_row, pairs().draw(rows, u[:, 0]).neighbour_row)


def test_the_share_of_neighbours_with_the_same_text_is_counted() -> None:
    # texts a a b a c: each of three a has two others among its four neighbours
    assert pairs().same_text_share() == pytest.approx(6 / 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": np.zeros((5, 4), dtype=np.int64)}, "another record"),
        ({"rows": ROWS + 1}, "another record"),
        ({"weights": WEIGHTS * 2}, "sum to 1"),
        ({"weights": np.array([[2.0, -1.0, 0.0, 0.0]] * 5)}, "non-negative"),
        ({"similarities": SIMILARITIES[:, :2]}, r"not \(n, k\)"),
        ({"texts": ["a"]}, r"not \(n, k\)"),
    ],
)
def test_inconsistent_arrays_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs(**changes)
