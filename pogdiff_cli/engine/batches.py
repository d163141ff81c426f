"""From (seed, step, slot) to the tensors of a training step: every draw is a function, none is state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pogdiff_cli.data.draws import Stream, normals, uniform
from pogdiff_cli.data.pairs import Pairs
from pogdiff_cli.data.sampling import RecordSampler
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.engine.encode import conditions, latent_key, text_key
from pogdiff_cli.method import PsiTerm, psi, roulette_probability

Method = Literal["pogdiff", "vanilla", "cbdm", "t2h"]


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """The training records in columns, row by row: what a draw of a record leads to."""

    image_keys: Sequence[str]
    captions: Sequence[str]
    identity: NDArray[np.int32]
    loss_weight: NDArray[np.float64]
    pairs: Pairs | None = None
    inverse_density: NDArray[np.float64] | None = None
    log_density: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """All that decides the draws."""

    method: Method
    seed: int
    global_batch: int
    rows_per_micro_batch: int
    timesteps: int
    caption_dropout: float
    random_flip: bool
    noise_offset: float
    a1: float
    a2: float
    psi_terms: tuple[PsiTerm, ...]
    roulette: float | None
    cbdm_drop: float
    cbdm_uniform: Literal["record", "identity"]


@dataclass(frozen=True, kw_only=True)
class HostBatch:
    """One micro-batch on the host. ``neighbour_rows`` are the rows that need a second forward."""

    rows: NDArray[np.int64]
    x0: Tensor
    noise: Tensor
    t: Tensor
    condition: dict[str, Tensor]
    loss_weight: Tensor
    neighbour: dict[str, Tensor] | None
    neighbour_rows: Tensor
    neighbour_psi: Tensor
    log_density: Tensor | None = None
    transfer_draws: Tensor | None = None
    facts: dict[str, float] = field(default_factory=dict)


class Batches(Dataset[list[HostBatch]]):
    """Item ``step * micro_batches + micro`` is one micro-batch of this rank."""

    def __init__(
        self,
        *,
        rows: TrainingRows,
        settings: DrawSettings,
        sampler: RecordSampler,
        latents: TensorCache,
        texts: TensorCache,
        micro_batches: int,
        first_slot: int = 0,
    ) -> None:
        self.rows = rows
        self.settings = settings
        self.sampler = sampler
        self.latents = latents
        self.texts = texts
        self.micro_batches = micro_batches
        self.first_slot = first_slot
        self._identities = [np.flatnonzero(rows.identity == code) for code in np.unique(rows.identity)]
        self._text_keys = [text_key(caption) for caption in rows.captions]
        self._empty_key = text_key("")

    def __getitem__(self, item: int) -> list[HostBatch]:
        step, micro = divmod(item, self.micro_batches)
        size = self.settings.rows_per_micro_batch
        slots = np.arange(size, dtype=np.int64) + self.first_slot + micro * size
        return [self.draw(step, slots)]

    def draw(self, step: int, slots: NDArray[np.int64]) -> HostBatch:
        """The rows of the global batch's ``slots`` at ``step``."""
        settings = self.settings
        rows = self.sampler.rows(step, slots, settings.global_batch)
        x0 = self._latents(step, slots, rows)
        noise = self._noise(step, slots, tuple(x0.shape[1:]))
        t = np.floor(uniform(settings.seed, Stream.TIMESTEP, step, slots)[:, 0] * settings.timesteps)
        kept = self._caption_kept(step, slots)
        keys = [self._text_keys[row] if keep else self._empty_key for row, keep in zip(rows, kept, strict=True)]
        others, weights = self._neighbours(step, slots, rows, kept)
        second = np.flatnonzero(weights > 0)
        neighbour_keys = [self._text_keys[others[i]] for i in second]
        return HostBatch(
            rows=rows,
            x0=x0,
            noise=noise,
            t=torch.from_numpy(t.astype(np.int64)),
            condition=conditions(self.texts.get(keys)),
            loss_weight=_float(self.rows.loss_weight[rows]),
            neighbour=conditions(self.texts.get(neighbour_keys)) if second.size else None,
            neighbour_rows=torch.from_numpy(second),
            neighbour_psi=_float(weights[second]),
            log_density=_float(self.rows.log_density[rows]) if settings.method == "t2h" else None,  # type: ignore[index]
            transfer_draws=_float(uniform(settings.seed, Stream.TRANSFER, step, slots)[:, 0]),
            facts={"psi_above_one": float(np.mean(weights > 1)), "second_forward": second.size / len(rows)},
        )

    def _latents(self, step: int, slots: NDArray[np.int64], rows: NDArray[np.int64]) -> Tensor:
        """Z = mean + std * e, sampled anew each time a record is drawn."""
        flips = uniform(self.settings.seed, Stream.FLIP, step, slots)[:, 0] < 0.5
        keys = [
            latent_key(self.rows.image_keys[row], flipped=bool(flip) and self.settings.random_flip)
            for row, flip in zip(rows, flips, strict=True)
        ]
        moments = self.latents.get(keys)
        return moments["mean"] + moments["std"] * self._normals(Stream.LATENT, step, slots, moments["mean"].shape[1:])

    def _noise(self, step: int, slots: NDArray[np.int64], shape: tuple[int, ...]) -> Tensor:
        noise = self._normals(Stream.NOISE, step, slots, shape)
        if self.settings.noise_offset > 0:
            offset = self._normals(Stream.NOISE_OFFSET, step, slots, (shape[0], 1, 1))
            noise = noise + self.settings.noise_offset * offset
        return noise

    def _normals(self, stream: Stream, step: int, slots: NDArray[np.int64], shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(normals(self.settings.seed, stream, step, slots, tuple(shape)))

    def _caption_kept(self, step: int, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        settings = self.settings
        if settings.method == "cbdm":  # its authors toss one coin for the whole batch
            coin = uniform(settings.seed, Stream.CONDITION_COIN, step, np.zeros(1, dtype=np.int64))[0, 0]
            return np.full(len(slots), coin >= settings.cbdm_drop)
        draws = uniform(settings.seed, Stream.DROPOUT, step, slots)[:, 0]
        return np.asarray(draws >= settings.caption_dropout)

    def _neighbours(
        self, step: int, slots: NDArray[np.int64], rows: NDArray[np.int64], kept: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """For each row another record, and the weight of its term (0: no second forward)."""
        if self.settings.method == "pogdiff":
            return self._pog_neighbours(step, slots, rows, kept)
        if self.settings.method == "cbdm":
            return self._uniform_records(step, slots), kept.astype(np.float64)
        return rows, np.zeros(len(rows))

    def _pog_neighbours(
        self, step: int, slots: NDArray[np.int64], rows: NDArray[np.int64], kept: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        settings, pairs = self.settings, self.rows.pairs
        assert pairs is not None, "pogdiff trains on pairs"
        drawn = pairs.draw(rows, uniform(settings.seed, Stream.NEIGHBOUR, step, slots)[:, 0])
        density = np.ones(len(rows)) if self.rows.inverse_density is None else self.rows.inverse_density[rows]
        weights = psi(
            drawn.similarity, drawn.same_identity, density, a1=settings.a1, a2=settings.a2, terms=settings.psi_terms
        )
        weights = np.where(kept & ~drawn.same_text, weights, 0.0)
        if settings.roulette is not None:
            probability = roulette_probability(weights, settings.roulette)
            accepted = uniform(settings.seed, Stream.ROULETTE, step, slots)[:, 0] < probability
            weights = np.where(accepted, weights / np.maximum(probability, 1e-300), 0.0)
        return drawn.neighbour_row, weights

    def _uniform_records(self, step: int, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        draws = uniform(self.settings.seed, Stream.UNIFORM_RECORD, step, slots, 2)
        if self.settings.cbdm_uniform == "record":
            return np.floor(draws[:, 0] * len(self.rows.captions)).astype(np.int64)
        groups = [self._identities[int(u * len(self._identities))] for u in draws[:, 0]]
        return np.array([group[int(u * len(group))] for group, u in zip(groups, draws[:, 1], strict=True)])


def _float(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
