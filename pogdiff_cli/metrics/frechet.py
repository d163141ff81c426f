"""Exact Frechet distance between Gaussians fitted to features: no sqrtm, epsilon or complex numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.features import Array, as_pair


@dataclass(frozen=True, kw_only=True)
class Frechet:
    """The distance, the two parts it is the sum of, and the mean part freed of its sampling bias."""

    distance: float
    mean_part: float
    trace_part: float
    mean_gap_unbiased: float | None  # None where a set has a single image: its covariance is unknown
    real_count: int
    fake_count: int


def frechet(real: npt.ArrayLike, fake: npt.ArrayLike) -> Frechet:
    """|mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr sqrt(S1 S2): real (n, d), fake (m, d) -> its value and parts.

    With centred rows A, B over sqrt(n - 1), tr sqrt(S1 S2) is the nuclear norm of A B^T = U s V^T, and the
    whole trace part is the squared residual |A - U V^T B|^2 of the orthogonal Procrustes problem that this
    singular value decomposition solves. As a sum of squares it is never negative and loses no digits where
    the sets nearly agree.

    A set of one image has covariance zero. The unbiased mean gap is |mu1 - mu2|^2 - tr S1 / n - tr S2 / m.
    """
    first, second = as_pair(real, fake)
    n, m = len(first), len(second)
    if n == 0 or m == 0:
        raise PogdiffError("The Frechet distance of an empty set is undefined.", exit_code=Exit.DATA)
    gap = first.mean(axis=0) - second.mean(axis=0)
    mean_part = float(gap @ gap)
    root1, root2 = _root(first), _root(second)
    trace_part = _residual(root1, root2)
    unbiased = None
    if n > 1 and m > 1:
        unbiased = mean_part - float(np.sum(root1**2)) / n - float(np.sum(root2**2)) / m
    return Frechet(
        distance=mean_part + trace_part,
        mean_part=mean_part,
        trace_part=trace_part,
        mean_gap_unbiased=unbiased,
        real_count=n,
        fake_count=m,
    )


def _root(rows: Array) -> Array:
    """(n, d) -> R (min(n, d), d) with R^T R the covariance; QR first where n > d, so that R is small."""
    n, d = rows.shape
    centred: Array = (rows - rows.mean(axis=0)) / np.sqrt(max(n - 1, 1))
    if n > d:
        return np.asarray(np.linalg.qr(centred, mode="r"))
    return centred


def _residual(first: Array, second: Array) -> float:
    """Minimum over orthogonal Q of |A - Q B|_F^2, rows padded with zeros to one number."""
    rows = max(len(first), len(second))
    a = np.pad(first, ((0, rows - len(first)), (0, 0)))  # (r, d)
    b = np.pad(second, ((0, rows - len(second)), (0, 0)))  # (r, d)
    u, _, vt = np.linalg.svd(a @ b.T)  # u (r, r), vt (r, r)
    return float(np.sum((a - (u @ vt) @ b) ** 2))
