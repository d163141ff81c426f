"""The k most similar images of every image by cosine, itself excluded by row (paper, Sec. 3.2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.exact_search import Ranked, exact_neighbours
from pogdiff_cli.models.inverted_lists import InvertedLists, build_lists, neighbours_in_lists, probes_needed
from pogdiff_cli.models.unit_rows import UnitRows
from pogdiff_cli.progress import Track, untracked

Search = Literal["auto", "exact", "approximate"]
APPROXIMATE_FROM = 200_000  # rows from which "auto" no longer compares all pairs
SAMPLE = 500  # rows that are also searched exactly: as many to choose the lists by, as many again to measure recall
RECALL = 0.95  # below which the result says that it is poor


@dataclass(frozen=True, kw_only=True, eq=False)
class Recall:
    """recall@k: the share of the k most similar images that an approximate search found, over sampled rows."""

    value: float
    standard_error: float
    rows: NDArray[np.int64]  # (m,) the rows it was measured on, none of which the search was adjusted to
    lists: int
    probed: int  # lists compared with each row


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """k neighbours of n rows, in descending order of similarity and, where equal, ascending order of rows."""

    rows: NDArray[np.int64]  # (n, k)
    similarities: NDArray[np.float32]  # (n, k) cosines
    notes: tuple[str, ...] = ()
    recall: Recall | None = None  # None: every pair was compared


def nearest(
    embeddings: NDArray[np.floating],
    k: int,
    *,
    search: Search = "auto",
    absent: NDArray[np.bool_] | None = None,
    block: int = 2048,
    track: Track = untracked,
) -> Neighbours:
    """s_ij = z_i . z_j / (|z_i| |z_j|), the k largest over j != i: embeddings (n, d) -> (n, k).

    A copy of an image is its neighbour, at similarity 1; the row itself never is. ``embeddings`` may be
    memory-mapped and are not copied. Rows of ``absent`` (n,) may hold anything: s = 0 to every other.
    """
    n = len(embeddings)
    if n < 2 or k < 1:
        raise PogdiffError(
            f"{n} image(s) have no {k} neighbours.",
            hint="At least two images and one neighbour are needed.",
            exit_code=Exit.DATA,
        )
    units = UnitRows(embeddings, absent=absent)
    kept = min(k, n - 1)
    notes = () if kept == k else (f"k reduced from {k} to {kept}: there are only {n} images",)
    if search == "exact" or units.present < (APPROXIMATE_FROM if search == "auto" else 2):
        found = exact_neighbours(units, np.arange(n), kept, block=block, track=track)
        return Neighbours(rows=found.rows, similarities=found.similarities, notes=notes)
    return _approximate(units, kept, notes, track)


def _approximate(units: UnitRows, k: int, notes: tuple[str, ...], track: Track) -> Neighbours:
    """Search the lists nearest to each row's own; how many is decided, and then judged, by exact search of a sample."""
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(~units.absent))[: 2 * SAMPLE]
    to_choose, to_judge = (np.sort(half) for half in np.array_split(drawn, 2))
    truth = exact_neighbours(units, np.concatenate([to_choose, to_judge]), k)
    lists = build_lists(units, track=track)
    probed = probes_needed(lists, to_choose, truth.rows[: len(to_choose)])
    found = neighbours_in_lists(units, lists, k, probed=probed, track=track)
    truth_of_judged = Ranked(rows=truth.rows[len(to_choose) :], similarities=truth.similarities[len(to_choose) :])
    recall = _recall(found, truth_of_judged, to_judge, lists, probed)
    return Neighbours(
        rows=found.rows, similarities=found.similarities, notes=(*notes, *_notes(recall, k, len(units))), recall=recall
    )


def _recall(found: Ranked, truth: Ranked, rows: NDArray[np.int64], lists: InvertedLists, probed: int) -> Recall:
    # by similarity, not by row: of more than k exact copies, any k are the nearest
    shares = (found.similarities[rows] >= truth.similarities[:, -1:]).mean(axis=1)
    return Recall(
        value=float(shares.mean()) if len(rows) else 1.0,
        standard_error=float(shares.std() / np.sqrt(max(1, len(rows)))) if len(rows) else 0.0,
        rows=rows,
        lists=len(lists.centroids),
        probed=probed,
    )


def _notes(recall: Recall, k: int, n: int) -> tuple[str, ...]:
    note = (
        f"approximate search ({n} images): {recall.probed} of {recall.lists} inverted lists, "
        f"recall@{k} {recall.value:.3f} (standard error {recall.standard_error:.3f}) against exact search of "
        f"{len(recall.rows)} images"
    )
    if recall.value >= RECALL:
        return (note,)
    poor = f"recall@{k} is below {RECALL}: these features form no groups; index.search: exact compares every pair"
    return (note, poor)
