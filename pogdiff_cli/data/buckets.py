"""Sizes of about one area and different aspects: an image takes the nearest, so that little of it is cut off."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]  # width, height
_WIDEST = 2.0  # aspects from 1:2 to 2:1


@lru_cache(maxsize=64)
def bucket_sizes(resolution: int, multiple: int = 8) -> tuple[Size, ...]:
    """The square, then wider and wider sizes of about resolution^2 pixels, each with its upright twin.

    Sides other than the square's are multiples of 64 from 512 pixels on, and of about an eighth of the resolution
    below: some seven aspects, so that the rows of a batch fall into few shapes. All are multiples of ``multiple``,
    which is what the model family takes: 8 or 16.
    """
    step = multiple * max(1, min(64, resolution // 8) // multiple)
    sizes = [(resolution, resolution)]
    for width in range(step * (resolution // step + 1), 2 * resolution, step):
        height = step * round(resolution**2 / width / step)
        if 0 < height < resolution and width <= _WIDEST * height:
            sizes += [(width, height), (height, width)]
    return tuple(sizes)


def bucket_of(size: Size, resolution: int, multiple: int = 8) -> Size:
    """The size that one image of this width and height is brought to."""
    return bucket_sizes(resolution, multiple)[int(nearest_buckets(np.array([size]), resolution, multiple)[0])]


def nearest_buckets(sizes: NDArray[np.int64], resolution: int, multiple: int = 8) -> NDArray[np.int64]:
    """Argmin_k |log(w / h) - log(W_k / H_k)|: widths and heights (n, 2) -> numbers of buckets (n,)."""
    aspects = np.log(sizes[:, 0] / sizes[:, 1])
    nearest = np.zeros(len(sizes), dtype=np.int64)
    distance = np.full(len(sizes), np.inf)
    for number, (width, height) in enumerate(bucket_sizes(resolution, multiple)):
        here = np.abs(aspects - math.log(width / height))
        closer = here < distance - 1e-9  # of two as near the squarer, whatever the last bit says
        nearest[closer], distance = number, np.where(closer, here, distance)
    return nearest
