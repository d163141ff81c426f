"""Precision, recall, density and coverage over k-nearest-neighbour balls (Kynkaanniemi 2019; Naeem 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from pogdiff_cli.metrics.features import Array, as_pair


@dataclass(frozen=True, kw_only=True)
class Prdc:
    """Four shares; density alone may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float
    nearest_k: int


def prdc(real: npt.ArrayLike, fake: npt.ArrayLike, *, nearest_k: int = 5) -> Prdc | None:
    """Real (n, d), fake (m, d) -> shares; a ball reaches to the k-th nearest image of its own set.

    precision: fakes inside some real ball. recall: reals inside some fake ball. density: real balls around
    a fake, over k. coverage: reals whose ball holds a fake. None where a set has fewer than k + 2 images: a
    ball would then reach (almost) the farthest image, and every share would be trivial.
    """
    first, second = as_pair(real, fake)
    if min(len(first), len(second)) < nearest_k + 2:
        return None
    across = cdist(first, second)  # (n, m)
    real_radius = _radius(first, nearest_k)[:, None]  # (n, 1)
    fake_radius = _radius(second, nearest_k)[None, :]  # (1, m)
    inside = across < real_radius
    return Prdc(
        precision=float(inside.any(axis=0).mean()),
        recall=float((across < fake_radius).any(axis=1).mean()),
        density=float(inside.sum(axis=0).mean() / nearest_k),
        coverage=float(inside.any(axis=1).mean()),
        nearest_k=nearest_k,
    )


def _radius(rows: Array, k: int) -> Array:
    """(n, d) -> (n,): distance to the k-th nearest other row (position 0 is the row itself)."""
    radius: Array = np.partition(cdist(rows, rows), k, axis=1)[:, k]
    return radius
