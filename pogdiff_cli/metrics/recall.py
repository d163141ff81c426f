"""Recall of Eq. 17: which training images a model can generate again, and how that grows with N."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from pogdiff_cli.metrics.features import Array, as_pair, cosines


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Training images of one identity that some generated image of it comes close to."""

    covered: int
    total: int
    generated: int

    @property
    def share(self) -> float:
        """One identity's term of Eq. 17."""
        return self.covered / self.total


def coverage(train: npt.ArrayLike, fake: npt.ArrayLike, *, threshold: float = 0.9) -> Coverage | None:
    """Train (n, d), fake (g, d): an image is covered if some cos(x, x') > threshold. None if n = 0."""
    trains, fakes = as_pair(train, fake)
    if not len(trains):
        return None
    hits = cosines(trains, fakes) > threshold  # (n, g)
    return Coverage(covered=int(hits.any(axis=1).sum()), total=len(trains), generated=len(fakes))


def recall(shares: Sequence[Coverage]) -> float:
    """Eq. (17): (1 / c) sum_i covered_i / total_i. Each identity counts once."""
    return float(np.mean([share.share for share in shares]))


def recall_curve(train: npt.ArrayLike, fake: npt.ArrayLike, counts: Sequence[int], *, threshold: float = 0.9) -> Array:
    """Expected share covered by N of the g generated images, for each N: (len(counts),).

    A training image with h hits stays uncovered by N images drawn without replacement with probability
    C(g - h, N) / C(g, N): exact, with nothing drawn. At N = g it is the share that ``coverage`` returns.
    """
    trains, fakes = as_pair(train, fake)
    g = len(fakes)
    hits = (cosines(trains, fakes) > threshold).sum(axis=1)  # (n,)
    drawn = np.minimum(np.asarray(counts), g)[:, None]  # (c, 1)
    misses = g - hits[None, :]  # (1, n)
    possible = misses >= drawn
    free = np.where(possible, misses - drawn, 0)
    log_missed = gammaln(misses + 1) - gammaln(free + 1) - gammaln(g + 1) + gammaln(g - drawn + 1)
    missed = np.where(possible, np.exp(log_missed), 0.0)  # (c, n)
    curve: Array = 1.0 - missed.mean(axis=1)
    return curve
