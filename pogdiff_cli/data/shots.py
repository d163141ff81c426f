"""Frequency groups: identities by how many training images they have (paper, Sec. 4.1: few = 2 images)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.errors import Exit, PogdiffError

Group = Literal["many", "medium", "few"]
GROUPS: tuple[Group, ...] = ("many", "medium", "few")


def shots(counts: Sequence[int] | NDArray[np.int64], *, few_at_most: int, many_at_least: int) -> list[Group]:
    """Counts (m,) -> groups: few where count <= few_at_most, many where count >= many_at_least."""
    if not 0 <= few_at_most < many_at_least:
        raise PogdiffError(
            f"data.few_at_most ({few_at_most}) must be below data.many_at_least ({many_at_least}).",
            hint="An identity cannot be few and many at once.",
            exit_code=Exit.USAGE,
        )
    return [_group(int(count), few_at_most, many_at_least) for count in counts]


def _group(count: int, few_at_most: int, many_at_least: int) -> Group:
    if count <= few_at_most:
        return "few"
    return "many" if count >= many_at_least else "medium"
