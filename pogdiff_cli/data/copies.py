"""Near copies: pictures that a perceptual hash cannot tell apart, such as one photograph saved twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

_BANDS = 8  # of 8 bits: two hashes at distance < 8 agree in at least one band


def difference_hash(image: Image.Image) -> int:
    """64 bits, each whether a cell of a 9x8 grey thumbnail is brighter than its right neighbour."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (grey[:, :-1] > grey[:, 1:]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_copies(hashes: Iterable[tuple[str, int]], *, distance: int = 2) -> list[list[str]]:
    """Groups of files whose hashes differ in at most ``distance`` (< 8) bits, directly or through others."""
    if not 0 <= distance < _BANDS:
        raise ValueError(f"distance lies in [0, {_BANDS}): got {distance}")
    items = list(hashes)
    leader = list(range(len(items)))
    for row, other in _near_pairs([value for _, value in items], distance):
        leader[_find(leader, row)] = _find(leader, other)
    groups: dict[int, list[str]] = defaultdict(list)
    for row, (name, _) in enumerate(items):
        groups[_find(leader, row)].append(name)
    return [names for names in groups.values() if len(names) > 1]


def _near_pairs(values: list[int], distance: int) -> Iterator[tuple[int, int]]:
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        for band in range(_BANDS):
            bucket = buckets[band, (value >> (8 * band)) & 0xFF]
            yield from ((row, other) for other in bucket if (values[other] ^ value).bit_count() <= distance)
            bucket.append(row)


def _find(leader: list[int], row: int) -> int:
    """The representative of a row's group, with path halving."""
    while leader[row] != row:
        leader[row] = leader[leader[row]]
        row = leader[row]
    return row
