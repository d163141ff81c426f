"""Approximate neighbours of a large set: k-means lists, each compared with the lists nearest to it.

Every row is a query, so rows are searched list by list: the rows of one list share their candidates, and the
comparison is one matrix product instead of a million short scans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.models.exact_search import MARGIN, Ranked, best_by_product, best_of_few, exact_neighbours, rank
from pogdiff_cli.models.parallel import one_core_each
from pogdiff_cli.models.unit_rows import UnitRows, chunks, faiss_after_torch
from pogdiff_cli.progress import Track, untracked

_TRAINED_ON = 48  # rows a centroid
_ROUNDS = 8  # of k-means
_AIM = 0.975  # recall on the rows that choose how many lists are probed: some above what is promised
_SHARE = 16  # at most one in so many lists is probed: beyond that exact search is the better choice
_LEAST = 4
_SCORES = 1 << 24  # products held at once on each core: 64 MB


@dataclass(frozen=True, kw_only=True, eq=False)
class InvertedLists:
    """n rows in m lists by nearest centroid."""

    centroids: NDArray[np.float32]  # (m, d)
    of_row: NDArray[np.int32]  # (n,) the list of each row, -1 for one without a direction
    members: NDArray[np.int64]  # rows, list by list
    starts: NDArray[np.int64]  # (m + 1,) where each list begins in ``members``
    nearest: NDArray[np.int64]  # (m, p) the p lists nearest to each, itself first

    def rows(self, number: int) -> NDArray[np.int64]:
        """Rows of one list, ascending."""
        return self.members[self.starts[number] : self.starts[number + 1]]


def build_lists(units: UnitRows, *, track: Track = untracked) -> InvertedLists:
    """About 4 sqrt(n) lists by spherical k-means on a sample, with a fixed seed."""
    n, d = units.shape
    # k-means wants 39 rows a centroid at least
    count = max(1, min(int(4 * np.sqrt(units.present)), units.present // 39))
    faiss = faiss_after_torch()
    clustering = faiss.Kmeans(d, count, niter=_ROUNDS, seed=0, spherical=True, max_points_per_centroid=_TRAINED_ON)
    sample = np.random.default_rng(0).permutation(np.flatnonzero(~units.absent))[: _TRAINED_ON * count]
    clustering.train(units[np.sort(sample)])
    centroids = np.ascontiguousarray(clustering.centroids, dtype=np.float32)
    of_row = np.empty(n, dtype=np.int32)
    parts = list(chunks(n))
    for part in track(parts, "Sorting into lists", len(parts)):
        of_row[part] = best_by_product(units[part], centroids, 1).rows[:, 0]
    of_row[units.absent] = -1
    sizes = np.bincount(of_row[~units.absent], minlength=count)
    return InvertedLists(
        centroids=centroids,
        of_row=of_row,
        members=np.argsort(of_row, kind="stable")[n - int(sizes.sum()) :],
        starts=np.concatenate([[0], np.cumsum(sizes)]),
        nearest=_nearest_lists(centroids, max(_LEAST, count // _SHARE)),
    )


def _nearest_lists(centroids: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    found = best_by_product(centroids, centroids, count).rows
    own = np.arange(len(centroids))[:, None]
    # two equal centroids: each must come first in its own row
    order = np.argsort(found != own, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)


def probes_needed(lists: InvertedLists, rows: NDArray[np.int64], neighbours: NDArray[np.int64]) -> int:
    """The least p for which the p lists nearest to a row's own hold enough of its exact neighbours.

    rows (m,), their neighbours (m, k). With r the place of a neighbour's list among the nearest lists,
    recall(p) = P(r < p): no search is needed to know it.
    """
    order = lists.nearest[lists.of_row[rows]]  # (m, p)
    recall = np.array(
        [(lists.of_row[neighbours] == order[:, place, None]).sum() for place in range(order.shape[1])], dtype=np.float64
    ).cumsum() / max(1, neighbours.size)
    enough = np.flatnonzero(recall >= _AIM)
    needed = int(enough[0]) + 1 if len(enough) else order.shape[1]
    return min(max(needed, _LEAST), order.shape[1])


def neighbours_in_lists(
    units: UnitRows, lists: InvertedLists, k: int, *, probed: int, track: Track = untracked
) -> Ranked:
    """The k nearest of every row among the rows of the ``probed`` lists nearest to its own: (n, k)."""
    n, count = len(units), len(lists.centroids)
    rows = np.full((n, k), -1, dtype=np.int64)
    similarities = np.empty((n, k), dtype=np.float32)

    def search(number: int) -> None:  # lists share no row: each core writes its own
        own = lists.rows(number)
        # in order of rows, or reading them from the file takes thrice as long
        others = np.sort(np.concatenate([lists.rows(int(other)) for other in lists.nearest[number, :probed]]))
        if len(others) <= k or not len(own):
            return
        vectors = units[others]
        for part in chunks(len(own), max(1, _SCORES // len(others))):
            asked = own[part]
            found = best_of_few(units[asked], vectors, k + 1 + MARGIN)
            best = rank(units, asked, others[found.rows], k, read=(vectors, found.rows))
            rows[asked], similarities[asked] = best.rows, best.similarities

    for _ in track(one_core_each(search, range(count)), "Searching neighbours", count):
        pass
    left = np.flatnonzero(rows[:, 0] < 0)
    if len(left):  # of lists too small to hold k others, and without a direction
        exact = exact_neighbours(units, left, k)
        rows[left], similarities[left] = exact.rows, exact.similarities
    return Ranked(rows=rows, similarities=similarities)
