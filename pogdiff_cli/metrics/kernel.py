"""Kernel distance (KID) as a full U-statistic: no random subsets, one number for one set of features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pogdiff_cli.metrics.features import Array, as_pair

_BLOCK = 2048  # rows of a kernel matrix held at once


def kernel_distance(real: npt.ArrayLike, fake: npt.ArrayLike) -> float | None:
    """MMD^2 with k(x, y) = (x.y / d + 1)^3: real (n, d), fake (m, d) -> unbiased estimate.

    mean of k over ordered pairs i != j within each set, minus twice its mean over pairs across. It is
    unbiased, hence sometimes negative. None where a set has fewer than two images.
    """
    first, second = as_pair(real, fake)
    if len(first) < 2 or len(second) < 2:
        return None
    return _within(first) + _within(second) - 2.0 * _total(first, second) / (len(first) * len(second))


def _within(rows: Array) -> float:
    """Mean of the kernel over ordered pairs of different rows."""
    n, d = rows.shape
    diagonal = float(np.sum((np.einsum("nd,nd->n", rows, rows) / d + 1.0) ** 3))
    return float((_total(rows, rows) - diagonal) / (n * (n - 1)))


def _total(first: Array, second: Array) -> float:
    """Sum of the kernel over all pairs, a block of rows at a time."""
    d = first.shape[1]
    blocks = (first[start : start + _BLOCK] for start in range(0, len(first), _BLOCK))
    return sum((float(np.sum((block @ second.T / d + 1.0) ** 3)) for block in blocks), start=0.0)
