"""Cosine similarity of generated images with real ones, and the share that nearly copy a training image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pogdiff_cli.metrics.features import as_pair, cosines


def mean_cosine(fake: npt.ArrayLike, real: npt.ArrayLike) -> float | None:
    """Mean of cos(x, x') over all pairs (the paper's DINO score): fake (g, d), real (n, d). None if empty."""
    reals, fakes = as_pair(real, fake)
    if not len(fakes) or not len(reals):
        return None
    return float(cosines(fakes, reals).mean())


def copy_rate(fake: npt.ArrayLike, train: npt.ArrayLike, *, threshold: float) -> float | None:
    """Share of images whose largest cosine with a training image exceeds the threshold. None if empty."""
    trains, fakes = as_pair(train, fake)
    if not len(fakes) or not len(trains):
        return None
    return float(np.mean(cosines(fakes, trains).max(axis=1) > threshold))
