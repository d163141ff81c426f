"""Which record a slot of the global batch trains on: a pure function of (seed, step, slot).

Position p = step * global_batch + slot runs through epochs of fixed length, so nothing is dropped at an
epoch's end and a resumed run needs only its step. An epoch holds record j r_j times on average:

    natural         r = 1, exactly once each
    sqrt            P(identity) ~ sqrt(c), hence r_j ~ 1 / sqrt(c)
    repeat_factor   r_j = max(1, sqrt(t / f)), f = c / n     (LVIS; t = 1 / identities by default)
    balanced        every identity once a round, its photos in turn
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.data.draws import Stream, generator
from pogdiff_cli.errors import Exit, PogdiffError

Sampling = Literal["natural", "sqrt", "balanced", "repeat_factor"]
LossWeight = Literal["none", "inverse_sqrt"]
_EPOCH_SLOT = 2**63  # a slot no batch reaches: the numbers that shuffle an epoch are nobody else's


class RecordSampler:
    """Draws record rows. ``identity`` (n,) holds the code of each *training* record, in record order."""

    def __init__(
        self,
        identity: NDArray[np.integer],
        sampling: Sampling,
        seed: int,
        *,
        repeat_threshold: float | None = None,
    ) -> None:
        if len(identity) == 0:
            raise PogdiffError("There is no training record to draw.", exit_code=Exit.DATA)
        self._seed = seed
        self._codes, self._member, counts = np.unique(identity, return_inverse=True, return_counts=True)
        self._counts = counts.astype(np.int64)
        self._rounds = sampling == "balanced"
        self._by_identity = np.argsort(self._member, kind="stable")
        self._ends = np.cumsum(self._counts)
        repeats = _repeats(sampling, self._counts, repeat_threshold)[self._member]
        self._epoch_size = len(self._codes) if self._rounds else int(np.ceil(repeats.sum() - 1e-9))
        # scaled so that an epoch has a whole number of draws; the change is below one part in n
        self._repeats = repeats * (self._epoch_size / repeats.sum())
        self._uniform = bool(np.all(repeats == 1.0))
        # three epochs: a batch may straddle two, and a prefetching worker be one ahead
        self._epoch = lru_cache(maxsize=3)(self._draw_epoch)
        self._photo_order = lru_cache(maxsize=4096)(self._draw_photo_order)

    @property
    def epoch_size(self) -> int:
        """Draws in one epoch (in one round of identities for ``balanced``)."""
        return self._epoch_size

    def rows(self, step: int, slots: NDArray[np.int64], global_batch: int) -> NDArray[np.int64]:
        """Slots (b,) of step ``step`` -> record rows (b,)."""
        positions = step * global_batch + np.asarray(slots, dtype=np.int64)
        epochs, places = np.divmod(positions, self._epoch_size)
        rows = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._epoch(int(epoch))[places[here]]
            if self._rounds:
                rows[here] = [self._photo(int(identity), int(epoch)) for identity in rows[here]]
        return rows

    def _draw_epoch(self, epoch: int) -> NDArray[np.int64]:
        """The order of one epoch: record rows, or identities where a round takes each of them once."""
        rng = generator(self._seed, Stream.RECORD, epoch, _EPOCH_SLOT)
        if self._rounds or self._uniform:
            return rng.permutation(self._epoch_size).astype(np.int64)
        # Systematic sampling: record j is taken floor(r_j) or ceil(r_j) times and r_j on average. Grouped by
        # identity, so that each identity too has its expected share to within one draw.
        order = rng.permutation(len(self._repeats))
        order = order[np.argsort(self._member[order], kind="stable")]
        edges = np.floor(np.cumsum(self._repeats[order]) + rng.random())
        times = np.diff(edges, prepend=0.0).astype(np.int64)
        times[-1] += self._epoch_size - times.sum()  # rounding of the running sum at the last edge
        return rng.permutation(np.repeat(order, times)).astype(np.int64)

    def _photo(self, identity: int, round_: int) -> int:
        """Round r shows photo r mod c of the identity, in an order drawn anew every c rounds."""
        cycle, place = divmod(round_, int(self._counts[identity]))
        return int(self._photo_order(identity, cycle)[place])

    def _draw_photo_order(self, identity: int, cycle: int) -> NDArray[np.int64]:
        rng = generator(self._seed, Stream.PHOTO, cycle, int(self._codes[identity]))
        end = self._ends[identity]
        return rng.permutation(self._by_identity[end - self._counts[identity] : end])


def _repeats(sampling: Sampling, counts: NDArray[np.int64], threshold: float | None) -> NDArray[np.float64]:
    """Counts (m,) -> expected draws of one photo of each identity in an epoch (m,)."""
    if sampling == "sqrt":
        share = np.sqrt(counts) / np.sqrt(counts).sum()
        return np.asarray(counts.sum() * share / counts, dtype=np.float64)
    if sampling == "repeat_factor":
        frequency = counts / counts.sum()
        wanted = 1.0 / len(counts) if threshold is None else threshold
        return np.asarray(np.maximum(1.0, np.sqrt(wanted / frequency)), dtype=np.float64)
    return np.ones(len(counts))


def loss_weights(identity: NDArray[np.integer], mode: LossWeight) -> NDArray[np.float64]:
    """w_j = 1 / sqrt(c_identity(j)), scaled to mean 1 over the records: identity (n,) -> (n,)."""
    if mode == "none":
        return np.ones(len(identity))
    _, member, counts = np.unique(identity, return_inverse=True, return_counts=True)
    weights = 1.0 / np.sqrt(counts[member])
    return np.asarray(weights / weights.mean(), dtype=np.float64)


def exposure(rows: NDArray[np.integer], identity: NDArray[np.integer], identities: int) -> NDArray[np.int64]:
    """How often each identity was drawn: rows (t,), identity (n,) -> (identities,)."""
    return np.bincount(identity[rows], minlength=identities).astype(np.int64)
