"""Prior preservation: L + weight * L_prior, with L_prior the plain loss of images of the class under its prompts.

Each step has as many prior rows as rows of the data, and both terms are means over their rows. Draws of prior rows are
functions of (seed, stream, step, slot) as all others are, in slots of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.data.draws import Stream, uniform
from pogdiff_cli.engine.batches import Batches, DrawSettings
from pogdiff_cli.engine.objectives import VANILLA
from pogdiff_cli.engine.rows import HostBatch
from pogdiff_cli.engine.terms import Batch, Loss, Predict

_FIRST_SLOT = 2**32  # beyond every global batch


@dataclass(frozen=True, kw_only=True)
class PriorSampler:
    """Which of ``count`` class images a slot takes: each is as likely, whatever was taken before."""

    count: int
    seed: int

    def rows(self, step: int, slots: NDArray[np.int64], global_batch: int) -> NDArray[np.int64]:
        """Slots (b,) -> images (b,)."""
        del global_batch
        return np.floor(uniform(self.seed, Stream.PRIOR, step, slots)[:, 0] * self.count).astype(np.int64)


class PriorBatches(Batches):
    """The prior rows of each micro-batch: no neighbour, no dropped caption."""

    def __getitem__(self, item: int) -> list[HostBatch]:
        return [replace(batch, kind="prior", facts={}) for batch in super().__getitem__(item)]

    def slots(self, micro: int) -> NDArray[np.int64]:
        """Slots of the step that no row of the data has."""
        return super().slots(micro) + _FIRST_SLOT


def prior_settings(settings: DrawSettings) -> DrawSettings:
    """Those of the data, without what concerns captions of others."""
    return replace(settings, method="vanilla", caption_dropout=0.0)


@dataclass(frozen=True, kw_only=True)
class PriorLoss:
    """``weight`` w(t) mean|h - target|^2 of prior rows."""

    weight: float

    def __call__(self, predict: Predict, batch: Batch, *, denominator: float | None = None) -> Loss:
        """One forward. ``denominator``: prior rows of the whole step."""
        rows = float(len(batch.x_t)) if denominator is None else denominator
        plain = VANILLA(predict, batch, denominator=rows / self.weight)
        return Loss(value=plain.value, parts={"prior": plain.parts["denoise"]})
