"""The k nearest images by cosine, against comparing all pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models import exact_search, parallel
from pogdiff_cli.models.neighbours import Neighbours, Search, nearest
from pogdiff_cli.models.unit_rows import chunks


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


def found_by(found: Neighbours, embeddings: NDArray[np.float32], k: int) -> float:
    """Oracle: recall@k on the rows that the search says it measured, from all pairs."""
    assert found.recall is not None
    truth, _ = all_pairs(embeddings, k)
    return float(np.mean([len(set(found.rows[row]) & set(truth[row])) / k for row in found.recall.rows]))


def grouped(n: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(100, 16))
    return (centres[rng.integers(100, size=n)] + 0.3 * rng.normal(size=(n, 16))).astype(np.float32)


@pytest.mark.parametrize("embeddings", [grouped(3000), cloud(3000, 48)], ids=["groups", "no groups"])
def test_the_recall_that_is_reported_is_that_of_comparing_all_pairs(embeddings: NDArray[np.float32]) -> None:
    found = nearest(embeddings, 5, search="approximate")
    assert found.recall is not None
    assert len(found.recall.rows) == 500
    assert found.recall.value == pytest.approx(found_by(found, embeddings, 5), abs=1e-9)


def test_a_set_without_groups_is_said_to_be_poorly_searched() -> None:
    found = nearest(cloud(3000, 48), 5, search="approximate")
    assert found.recall is not None
    assert found.recall.value < 0.95
    assert "recall@5 is below 0.95" in found.notes[-1]


def test_exact_search_claims_no_recall() -> None:
    assert nearest(cloud(50, 8), 3).recall is None


def test_a_memory_mapped_array_has_the_same_neighbours_as_the_array_in_memory(tmp_path: Path) -> None:
    embeddings = grouped(2000)
    np.save(tmp_path / "embeddings.npy", embeddings)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    for search in ("exact", "approximate"):
        kept, read = nearest(embeddings, 5, search=search), nearest(mapped, 5, search=search)
        assert np.array_equal(kept.rows, read.rows)
        assert np.array_equal(kept.similarities, read.similarities)


@pytest.mark.parametrize("search", ["exact", "approximate"])
def test_rows_said_to_be_absent_may_hold_anything_and_are_similar_to_nothing(search: Search) -> None:
    embeddings = grouped(1500)
    absent = np.zeros(1500, dtype=bool)
    absent[::7] = True
    embeddings[absent] = np.nan
    found = nearest(embeddings, 4, search=search, absent=absent)
    assert (found.similarities[absent] == 0).all()
    assert found.rows[0].tolist() == [1, 2, 3, 4]
    assert found.rows[7].tolist() == [0, 1, 2, 3]
    assert not absent[found.rows[~absent]].any()


def test_exact_search_of_a_few_rows_at_a_time_finds_what_one_product_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = grouped(300)
    whole = nearest(embeddings, 5)
    monkeypatch.setattr(exact_search, "chunks", lambda n, size=None: chunks(n, size or 37))
    in_parts = nearest(embeddings, 5)
    assert np.array_equal(whole.rows, in_parts.rows)
    assert np.array_equal(whole.similarities, in_parts.similarities)


def test_copies_are_compared_with_all_rows_once_for_each_distinct_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = np.concatenate([np.repeat(cloud(1, 8), 1000, axis=0), cloud(200, 8, seed=1)])
    sizes: list[int] = []
    whole = exact_search._cosines
    monkeypatch.setattr(exact_search, "_cosines", lambda a, b: sizes.append(b.shape[1]) or whole(a, b))
    found = nearest(embeddings, 3)
    assert found.rows[500].tolist() == [0, 1, 2]
    assert found.rows[1].tolist() == [0, 2, 3]
    assert 1 <= sizes.count(1200) <= 201


def test_the_neighbours_of_approximate_search_do_not_depend_on_the_number_of_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embeddings = grouped(2000)
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    one = nearest(embeddings, 5, search="approximate")
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    three = nearest(embeddings, 5, search="approximate")
    assert np.array_equal(one.rows, three.rows)
    assert np.array_equal(one.similarities, three.similarities)


def test_work_on_all_cores_comes_back_in_order_and_its_error_is_raised() -> None:
    assert list(parallel.one_core_each(lambda number: number * number, range(50))) == [n * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(parallel.one_core_each(lambda number: 1 // number, [1, 0, 2]))


@pytest.mark.parametrize("present", [0, 1, 2, 60])
def test_approximate_search_of_a_set_with_hardly_any_features_gives_every_row_its_neighbours(present: int) -> None:
    embeddings = grouped(400)
    absent = np.arange(400) >= present
    found = nearest(embeddings, 5, search="approximate", absent=absent)
    assert ((found.rows >= 0) & (found.rows != np.arange(400)[:, None])).all()
    assert all(len(set(row)) == 5 for row in found.rows.tolist())
    assert (found.similarities[absent] == 0).all()
