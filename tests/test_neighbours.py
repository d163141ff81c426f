"""The k nearest images by cosine, against comparing all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.neighbours import nearest


def all_pairs(embeddings: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Oracle: float64 cosines of all pairs, the own row out, stable order."""
    z = embeddings.astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    cosines = z @ z.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


def cloud(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32) * np.float32(7.0)


@pytest.mark.parametrize("block", [1, 7, 64, 4096])
def test_neighbours_are_those_of_all_pairs_whatever_the_block(block: int) -> None:
    embeddings = cloud(120, 8)
    rows, cosines = all_pairs(embeddings, 5)
    found = nearest(embeddings, 5, block=block)
    assert np.array_equal(found.rows, rows)
    assert np.allclose(found.similarities, cosines, atol=1e-6)
    assert found.rows.dtype == np.int64
    assert found.similarities.dtype == np.float32
    assert found.notes == ()


def test_length_does_not_matter_to_a_cosine() -> None:
    embeddings = cloud(40, 6)
    lengths = np.random.default_rng(1).uniform(0.1, 100.0, size=(40, 1)).astype(np.float32)
    assert np.array_equal(nearest(embeddings, 4).rows, nearest(embeddings * lengths, 4).rows)


def test_a_copy_is_a_neighbour_and_the_image_itself_never_is() -> None:
    embeddings = cloud(30, 8)
    embeddings[17] = embeddings[3]
    found = nearest(embeddings, 3)
    assert found.rows[3, 0] == 17
    assert found.rows[17, 0] == 3
    assert found.similarities[3, 0] == pytest.approx(1.0, abs=1e-6)
    assert not (found.rows == np.arange(30)[:, None]).any()


def test_ties_go_to_the_lower_row_even_when_there_are_more_copies_than_candidates() -> None:
    embeddings = np.tile(cloud(1, 16), (200, 1))
    found = nearest(embeddings, 3, block=64)
    expected = [[row for row in range(5) if row != own][:3] for own in range(200)]
    assert found.rows.tolist() == expected


def test_groups_of_copies_are_ordered_alike_in_every_block_size() -> None:
    embeddings = np.repeat(cloud(6, 12), 40, axis=0)
    base = nearest(embeddings, 60, block=4096)
    for block in (1, 17, 100):
        assert np.array_equal(nearest(embeddings, 60, block=block).rows, base.rows)
    assert np.all(np.diff(base.rows[0][:39]) > 0)


def test_fewer_images_than_k_gives_all_others_and_a_note() -> None:
    found = nearest(cloud(4, 3), 5)
    assert found.rows.shape == (4, 3)
    assert "k reduced from 5 to 3" in found.notes[0]
    assert [sorted(row) for row in found.rows.tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


@pytest.mark.parametrize(("n", "k"), [(0, 1), (1, 5), (5, 0)])
def test_no_possible_neighbour_is_an_error(n: int, k: int) -> None:
    with pytest.raises(PogdiffError, match="neighbours") as caught:
        nearest(cloud(n, 3), k)
    assert caught.value.exit_code == Exit.DATA


def test_an_image_without_features_is_similar_to_nothing() -> None:
    embeddings = np.abs(cloud(10, 4))
    embeddings[4] = 0.0
    found = nearest(embeddings, 3)
    assert found.similarities[4].tolist() == [0.0, 0.0, 0.0]
    assert not (found.rows[np.arange(10) != 4] == 4).any()


def test_features_that_are_not_finite_are_refused() -> None:
    embeddings = cloud(5, 4)
    embeddings[2, 1] = np.nan
    with pytest.raises(PogdiffError, match="not finite") as caught:
        nearest(embeddings, 2)
    assert caught.value.exit_code == Exit.NON_FINITE


def test_approximate_search_finds_nearly_all_neighbours_of_clustered_images() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 16))
    embeddings = (np.repeat(centres, 40, axis=0) + 0.3 * rng.normal(size=(4000, 16))).astype(np.float32)
    exact, approximate = nearest(embeddings, 5, search="exact"), nearest(embeddings, 5, search="approximate")
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact.rows, approximate.rows, strict=True)])
    assert recall >= 0.95
    assert not (approximate.rows == np.arange(4000)[:, None]).any()
    assert "approximate search" in approximate.notes[0]


def test_approximate_search_that_comes_back_short_is_completed() -> None:
    # one far cluster of two: its inverted lists hold fewer than k others
    embeddings = np.concatenate([cloud(2000, 8) + 100, -cloud(2, 8) * 0.01 - 100]).astype(np.float32)
    found = nearest(embeddings, 30, search="approximate")
    assert (found.rows >= 0).all()
    assert all(len(set(row)) == 30 for row in found.rows.tolist())
