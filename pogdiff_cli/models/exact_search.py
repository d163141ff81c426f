"""The k nearest rows by comparing every pair, and the one order in which candidates are ranked."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.models.unit_rows import UnitRows, chunks, faiss_after_torch
from pogdiff_cli.progress import Track, untracked

MARGIN = 16  # candidates beyond k + 1: what rounding or ties may have pushed out of the first k
_WIDER = 256  # the margin for rows whose first margin was full of ties
_PART = 64  # rows ranked at once: what they need stays in the processor's cache
_ROUNDING = 1e-5  # of a float32 inner product of unit vectors, generously


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """k neighbours of m rows: rows (m, k) and cosines (m, k)."""

    rows: NDArray[np.int64]
    similarities: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The c best rows of m queries by the scores of a matrix product: (m, c) each."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


def exact_neighbours(
    units: UnitRows, queries: NDArray[np.int64], k: int, *, block: int = 2048, track: Track = untracked
) -> Ranked:
    """The k nearest of some rows among all others: queries (m,) -> (m, k). Ties go to the lower row."""
    rows = np.empty((len(queries), k), dtype=np.int64)
    similarities = np.zeros((len(queries), k), dtype=np.float32)
    copies = _Copies(units, k)
    # without a direction all are equally far, at similarity 0: the lowest rows are the answer
    blank = units.absent[queries]
    rows[blank] = _lowest(queries[blank], k)
    asked = np.flatnonzero(~blank)
    for start in track(range(0, len(asked), block), "Searching neighbours", -(-len(asked) // block)):
        part = asked[start : start + block]
        found, doubtful = _of_block(units, queries[part], k, MARGIN)
        if doubtful.any():
            found.rows[doubtful], found.similarities[doubtful] = _again(units, queries[part][doubtful], k, copies)
        rows[part], similarities[part] = found.rows, found.similarities
    return Ranked(rows=rows, similarities=similarities)


def rank(
    units: UnitRows,
    queries: NDArray[np.int64],
    candidates: NDArray[np.int64],
    k: int,
    *,
    read: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None,
) -> Ranked:
    """The best k of each query's candidates by a similarity that depends on the two vectors alone, ties by row.

    The scores of a matrix product differ in the last bit from block to block, which would order exact copies
    at random. ``read``: unit vectors that are in memory already, and the place of each candidate among them.
    """
    vectors, places = (units, candidates) if read is None else read
    exact = np.empty(candidates.shape, dtype=np.float32)
    for part in chunks(len(queries), _PART):
        flat = vectors[places[part].reshape(-1)]
        exact[part] = _cosines(units[queries[part]], flat.reshape(*candidates[part].shape, -1))
    exact[candidates == queries[:, None]] = -np.inf  # by row, not by score
    order = np.lexsort((candidates, -exact), axis=1)[:, :k]
    return Ranked(
        rows=np.take_along_axis(candidates, order, axis=1), similarities=np.take_along_axis(exact, order, axis=1)
    )


def best_by_product(queries: NDArray[np.float32], others: NDArray[np.float32], count: int) -> Candidates:
    """The ``count`` largest inner products of each query: (m, d), (n, d) -> (m, count)."""
    faiss = faiss_after_torch()
    scores, rows = faiss.knn(queries, others, min(count, len(others)), metric=faiss.METRIC_INNER_PRODUCT)
    return Candidates(rows=rows, scores=scores)


def best_of_few(queries: NDArray[np.float32], others: NDArray[np.float32], count: int) -> Candidates:
    """The same for matrices that are small, where one product and a selection are several times faster."""
    import torch

    products = torch.from_numpy(queries @ others.T)
    best = torch.topk(products, min(count, len(others)), dim=1, sorted=False)
    return Candidates(rows=best.indices.numpy(), scores=best.values.numpy())


def _of_block(units: UnitRows, queries: NDArray[np.int64], k: int, margin: int) -> tuple[Ranked, NDArray[np.bool_]]:
    """Neighbours, and which rows could have one beyond their candidates that ties with the k-th."""
    n, width = len(units), min(len(units), k + 1 + margin)
    asked = units[queries]
    best: Candidates | None = None
    for part in chunks(n):
        new = best_by_product(asked, units[part], width)
        best = _merged(best, Candidates(rows=new.rows + part.start, scores=new.scores), width)
    assert best is not None
    found = rank(units, queries, best.rows, k)
    edge = best.scores.min(axis=1)  # what is no candidate scored at most this
    return found, (width < n) & (edge > found.similarities[:, -1] - _ROUNDING)


def _merged(old: Candidates | None, new: Candidates, width: int) -> Candidates:
    if old is None:
        return new
    rows, scores = np.hstack([old.rows, new.rows]), np.hstack([old.scores, new.scores])
    if rows.shape[1] <= width:
        return Candidates(rows=rows, scores=scores)
    kept = np.argpartition(-scores, width - 1, axis=1)[:, :width]
    return Candidates(rows=np.take_along_axis(rows, kept, axis=1), scores=np.take_along_axis(scores, kept, axis=1))


def _lowest(queries: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The first k rows that are not the query: (m,) -> (m, k)."""
    first = np.broadcast_to(np.arange(k), (len(queries), k))
    return np.asarray(first + (first >= queries[:, None]), dtype=np.int64)


def _again(
    units: UnitRows, queries: NDArray[np.int64], k: int, copies: _Copies
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The same with a wider margin, then without one."""
    found, doubtful = _of_block(units, queries, k, _WIDER)
    for place in np.flatnonzero(doubtful):
        found.rows[place], found.similarities[place] = copies.neighbours(int(queries[place]))
    return found.rows, found.similarities


@dataclass(frozen=True)
class _Copies:
    """Neighbours of rows that have very many copies: all pairs, compared once for each distinct vector."""

    units: UnitRows
    k: int
    known: dict[bytes, tuple[NDArray[np.int64], NDArray[np.float32]]] = field(default_factory=dict)

    def neighbours(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        own = self.units[np.array([row])]
        key = own.tobytes()
        if key not in self.known:
            exact = np.concatenate([_cosines(own, self.units[part][None])[0] for part in chunks(len(self.units), 4096)])
            order = np.lexsort((np.arange(len(exact)), -exact))[: self.k + 1].astype(np.int64)
            self.known[key] = order, exact[order]
        rows, similarities = self.known[key]
        others = np.flatnonzero(rows != row)[: self.k]
        return rows[others], similarities[others]


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products of unit vectors, each summed in one fixed order in float64: (m, d), (m, c, d) -> (m, c)."""
    # not matmul: its kernels sum the same two vectors differently at different places of a batch
    products = np.einsum("nd,nkd->nk", a.astype(np.float64), b.astype(np.float64), optimize=False)
    return np.asarray(np.clip(products, -1.0, 1.0), dtype=np.float32)
