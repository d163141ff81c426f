"""Is it the right person? Nearest identity centroid, and how far the runner-up is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pogdiff_cli.metrics.features import Array, as_pair, unit_rows


@dataclass(frozen=True, kw_only=True)
class Identification:
    """Of one identity's generated images: which centroid is nearest, and by how much the own one leads."""

    correct: int
    total: int
    margin: float  # mean over images of cos(own centroid) - max cos(other centroids)
    confused_with: int | None  # the wrong centroid met most often

    @property
    def accuracy(self) -> float:
        """Share of images whose nearest centroid is their own."""
        return self.correct / self.total


def centroids(identities: Sequence[Array]) -> Array:
    """c_i = normalised mean of the unit rows of identity i: c of (n_i, d) -> (c, d); NaN where empty."""
    dimensions = next((rows.shape[1] for rows in identities if rows.size), 1)
    means = [unit_rows(rows).mean(axis=0) if len(rows) else np.full(dimensions, np.nan) for rows in identities]
    return unit_rows(np.stack(means))


def identify(fake: npt.ArrayLike, own: int, centres: Array) -> Identification | None:
    """Fake (g, d), centres (c, d), own in 0..c-1 -> accuracy and bleed margin by cosine.

    A tie is no match: the margin must be positive. None without images, without an own centroid, or with no
    other identity to be confused with.
    """
    known = np.isfinite(centres.sum(axis=1))
    if not known[own] or known.sum() < 2:
        return None
    _, fakes = as_pair(centres[known], fake)
    if not len(fakes):
        return None
    similarity = unit_rows(fakes) @ np.where(known[:, None], centres, 0.0).T  # (g, c)
    similarity[:, ~known] = -np.inf
    mine = similarity[:, own].copy()
    similarity[:, own] = -np.inf
    margins = mine - similarity.max(axis=1)
    wrong = similarity.argmax(axis=1)[margins <= 0]
    return Identification(
        correct=int(np.sum(margins > 0)),
        total=len(fakes),
        margin=float(margins.mean()),
        confused_with=int(np.bincount(wrong).argmax()) if wrong.size else None,
    )
