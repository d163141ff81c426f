"""What every metric agrees on about its input: float64 rows, one an image, all finite."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pogdiff_cli.errors import Exit, PogdiffError

Array = npt.NDArray[np.float64]


def as_features(features: npt.ArrayLike, label: str) -> Array:
    """Anything array-like -> (n, d) float64; refuses other shapes and non-finite numbers by name."""
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise PogdiffError(
            f"The {label} features have shape {rows.shape}.",
            hint="A metric needs a matrix: one row an image, one column a dimension.",
            exit_code=Exit.DATA,
        )
    if not np.isfinite(rows).all():
        raise PogdiffError(
            f"The {label} features hold numbers that are not finite.",
            hint="Look for images that the extractor could not read.",
            exit_code=Exit.DATA,
        )
    return rows


def as_pair(real: npt.ArrayLike, fake: npt.ArrayLike) -> tuple[Array, Array]:
    """Two sets of features of one dimension: (n, d), (m, d)."""
    first, second = as_features(real, "real"), as_features(fake, "generated")
    if first.shape[1] != second.shape[1]:
        raise PogdiffError(
            f"Real features have {first.shape[1]} dimensions, generated ones {second.shape[1]}.",
            hint="Embed both sets with the same extractor.",
            exit_code=Exit.DATA,
        )
    return first, second


def unit_rows(features: Array) -> Array:
    """(n, d) -> (n, d) with rows of length 1; a row of zeros stays zero, so its cosine with anything is 0."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    rows: Array = features / np.where(norms > 0, norms, 1.0)
    return rows


def cosines(first: Array, second: Array) -> Array:
    """(n, d), (m, d) -> (n, m) cosine similarities."""
    similarity: Array = unit_rows(first) @ unit_rows(second).T
    return similarity
