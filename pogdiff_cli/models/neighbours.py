"""The k most similar images of every image by cosine, itself excluded by row (paper, Sec. 3.2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.progress import Track, untracked

Search = Literal["auto", "exact", "approximate"]
_APPROXIMATE_FROM = 200_000  # rows from which "auto" no longer compares all pairs
_MARGIN = 16  # candidates beyond k + 1: what rounding or ties may have pushed out of the first k
_PART = 64  # rows compared at once: what they need stays in the processor's cache
_ROUNDING = 1e-5  # of a float32 inner product of unit vectors, generously


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """k neighbours of n rows, in descending order of similarity and, where equal, ascending order of rows."""

    rows: NDArray[np.int64]  # (n, k)
    similarities: NDArray[np.float32]  # (n, k) cosines
    notes: tuple[str, ...] = ()


def nearest(
    embeddings: NDArray[np.floating],
    k: int,
    *,
    search: Search = "auto",
    block: int = 2048,
    track: Track = untracked,
) -> Neighbours:
    """s_ij = z_i . z_j / (|z_i| |z_j|), the k largest over j != i: embeddings (n, d) -> (n, k).

    A copy of an image is its neighbour, at similarity 1; the row itself never is. Memory beyond the
    normalised copy of the embeddings is that of one block of rows.
    """
    n = len(embeddings)
    if n < 2 or k < 1:
        raise PogdiffError(
            f"{n} image(s) have no {k} neighbours.",
            hint="At least two images and one neighbour are needed.",
            exit_code=Exit.DATA,
        )
    unit = _normalised(embeddings)
    kept = min(k, n - 1)
    notes = () if kept == k else (f"k reduced from {k} to {kept}: there are only {n} images",)
    approximate = search == "approximate" or (search == "auto" and n >= _APPROXIMATE_FROM)
    index = _approximate_index(unit) if approximate else _exact_index(unit)
    rows = np.empty((n, kept), dtype=np.int64)
    similarities = np.empty((n, kept), dtype=np.float32)
    for start in track(range(0, n, block), "Searching neighbours", -(-n // block)):
        own = np.arange(start, min(start + block, n))
        scores, candidates = index.search(unit[own], min(n, kept + 1 + _MARGIN))
        rows[own], similarities[own], doubtful = _ranked(unit, own, candidates, scores, kept)
        # exact search with ties at the edge of the candidates, or an approximate one that came back short
        redo = doubtful if not approximate else own[(candidates >= 0).sum(axis=1) <= kept]
        for row in redo:
            rows[row], similarities[row] = _all_pairs(unit, int(row), kept)
    if approximate:
        notes = (
            *notes,
            f"approximate search ({n} images): inverted lists, nprobe {index.nprobe} of {index.nlist}",
        )
    return Neighbours(rows=rows, similarities=similarities, notes=notes)


def _normalised(embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
    if not np.isfinite(embeddings).all():
        raise PogdiffError("An embedding is not finite.", exit_code=Exit.NON_FINITE)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    # a row of zeros stands for "no face found": similar to nothing, s = 0
    return np.ascontiguousarray(embeddings / np.where(norms > 0, norms, 1.0), dtype=np.float32)


def _faiss() -> Any:
    # after torch: loading two OpenMP runtimes in the other order crashes on some platforms
    import torch  # noqa: F401, I001
    import faiss

    return faiss


def _exact_index(unit: NDArray[np.float32]) -> Any:
    index = _faiss().IndexFlatIP(unit.shape[1])
    index.add(unit)
    return index


def _approximate_index(unit: NDArray[np.float32]) -> Any:
    """Inverted lists, about 4 sqrt(n) of them, of which one in 32 is searched; trained with a fixed seed."""
    faiss = _faiss()
    lists = max(1, int(4 * np.sqrt(len(unit))))
    lists = min(lists, max(1, len(unit) // 39))  # faiss wants 39 points a centroid
    d, half = unit.shape[1], faiss.ScalarQuantizer.QT_fp16
    # half precision halves the lists' memory at no cost: candidates are compared exactly afterwards
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(d), d, lists, half, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = 0
    sample = np.random.default_rng(0).permutation(len(unit))[: 64 * lists]
    index.train(unit[np.sort(sample)])
    index.add(unit)
    index.nprobe = max(1, min(lists, max(16, lists // 32)))
    return index


def _ranked(
    unit: NDArray[np.float32],
    own: NDArray[np.int64],
    candidates: NDArray[np.int64],
    scores: NDArray[np.float32],
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """The best k of the candidates by a similarity that depends on the two vectors alone, ties by row.

    The index's own scores differ in the last bit from block to block, which would order exact copies at
    random. The third value lists the rows whose k-th neighbour could be tied with one that is no candidate.
    """
    exact = np.concatenate(
        [_cosines(unit[own[i : i + _PART], None], unit[candidates[i : i + _PART]]) for i in range(0, len(own), _PART)]
    )
    exact[(candidates == own[:, None]) | (candidates < 0)] = -np.inf  # by row, not by score; -1 pads short lists
    order = np.lexsort((candidates, -exact), axis=1)[:, :k]
    best = np.take_along_axis(exact, order, axis=1)
    complete = candidates.shape[1] == len(unit)
    doubtful = np.zeros(len(own), dtype=bool) if complete else scores[:, -1] > best[:, -1] - _ROUNDING
    return np.take_along_axis(candidates, order, axis=1), best, own[doubtful]


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products over the last axis of unit vectors, each summed in one fixed order in float64."""
    # not matmul: its kernels sum the same two vectors differently at different places of a batch
    products = np.multiply(a, b, dtype=np.float64).sum(axis=-1)
    return np.asarray(np.clip(products, -1.0, 1.0), dtype=np.float32)


def _all_pairs(unit: NDArray[np.float32], row: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The same for one row by comparing it with every other, in float64 sums of bounded memory."""
    parts = range(0, len(unit), 4096)
    exact = np.concatenate([_cosines(unit[row], unit[start : start + 4096]) for start in parts])
    exact[row] = -np.inf
    order = np.lexsort((np.arange(len(unit)), -exact))[:k]
    return order.astype(np.int64), exact[order]
