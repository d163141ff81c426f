"""From (seed, step, slot) to the tensors of a training step: every draw is a function, none is state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pogdiff_cli.data.draws import Stream, normals, uniform
from pogdiff_cli.data.sampling import RecordSampler
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.engine.encode import CONDITION, conditions
from pogdiff_cli.engine.rows import DrawSettings, HostBatch, TrainingRows
from pogdiff_cli.method import psi, roulette_probability

__all__ = ["Batches", "DrawSettings", "HostBatch", "TrainingRows"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What was drawn for the slots (b,) of a micro-batch, whatever the shapes of their latents."""

    step: int
    slots: Integers
    rows: Integers
    t: NDArray[Any]
    texts: Integers  # locations
    others: Integers  # neighbours' rows
    weights: Floats  # of the neighbour's term; 0: no second forward
    transfer: Floats | None

    def at(self, places: Integers) -> _Drawn:
        """Some of the slots."""
        columns = {name: value[places] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return _Drawn(**{**vars(self), **columns})


class Batches(Dataset[list[HostBatch]]):
    """Item ``step * micro_batches + micro`` is one micro-batch of rank ``rank`` of ``world``.

    Of the global batch's slots 0 to rows * micro_batches * world - 1 it holds those from (micro * world + rank) * rows
    on: of each micro-batch the ranks hold neighbouring parts. An item is a list, one host batch for each shape of
    latents among its rows: always one where all images are brought to one size.
    """

    def __init__(
        self,
        *,
        rows: TrainingRows,
        settings: DrawSettings,
        sampler: RecordSampler,
        latents: TensorCache,
        texts: TensorCache,
        micro_batches: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if settings.global_batch != settings.rows_per_micro_batch * micro_batches * world or not 0 <= rank < world:
            raise ValueError(
                f"rank {rank} of {world} with {micro_batches} micro-batches of {settings.rows_per_micro_batch} rows "
                f"is no split of a global batch of {settings.global_batch}"
            )
        self.rows = rows
        self.settings = settings
        self.sampler = sampler
        self.latents = latents
        self.texts = texts
        self.micro_batches = micro_batches
        self.rank, self.world = rank, world
        self.prior: Dataset[list[HostBatch]] | None = None  # further batches of each micro-batch
        self._condition = [name for name in texts.names if name.startswith(CONDITION)]
        self._by_identity = np.argsort(rows.identity, kind="stable")
        self._identity_counts = np.unique(rows.identity, return_counts=True)[1]
        self._identity_starts = np.cumsum(self._identity_counts) - self._identity_counts

    def __getitem__(self, item: int) -> list[HostBatch]:
        step, micro = divmod(item, self.micro_batches)
        return self.draw(step, self.slots(micro)) + ([] if self.prior is None else self.prior[item])

    def slots(self, micro: int) -> Integers:
        """The slots of the global batch that this rank's micro-batch ``micro`` holds."""
        size = self.settings.rows_per_micro_batch
        return np.arange(size, dtype=np.int64) + (micro * self.world + self.rank) * size

    def draw(self, step: int, slots: Integers) -> list[HostBatch]:
        """The rows of the global batch's ``slots`` at ``step``, one batch for each shape of latents."""
        settings = self.settings
        rows = self.sampler.rows(step, slots, settings.global_batch)
        kept = self._caption_kept(step, slots)
        others, weights = self._neighbours(step, slots, rows, kept)
        drawn = _Drawn(
            step=step,
            slots=slots,
            rows=rows,
            t=self._times(self._uniform(Stream.TIMESTEP, step, slots)),
            texts=np.where(kept, self.rows.texts[rows], self.rows.empty_text),
            others=others,
            weights=weights,
            transfer=self._uniform(Stream.TRANSFER, step, slots) if settings.method == "t2h" else None,
        )
        locations = self._locations(step, slots, rows)
        layouts = self.latents.layouts(locations)
        groups = [np.flatnonzero(layouts == layout) for layout in dict.fromkeys(layouts.tolist())]
        facts = {"psi_above_one": float(np.mean(weights > 1)), "second_forward": float(np.mean(weights > 0))}
        return [self._host(drawn.at(places), locations[places], facts) for places in groups]

    def _host(self, drawn: _Drawn, locations: Integers, facts: dict[str, float]) -> HostBatch:
        x0 = self._x0(drawn.step, drawn.slots, locations)
        second = np.flatnonzero(drawn.weights > 0)
        captions = np.concatenate([drawn.texts, self.rows.texts[drawn.others[second]]])
        both = conditions(self.texts.read(captions, self._condition))
        own = len(drawn.rows)
        of_x = {name: torch.from_numpy(values[drawn.rows]) for name, values in self.rows.image_condition.items()}
        return HostBatch(
            rows=drawn.rows,
            x0=x0,
            noise=self._noise(drawn.step, drawn.slots, tuple(x0.shape[1:])),
            t=torch.from_numpy(drawn.t),
            condition={name: tensor[:own] for name, tensor in both.items()} | of_x,
            loss_weight=_float(self.rows.loss_weight[drawn.rows]),
            neighbour={name: tensor[own:] for name, tensor in both.items()}
            | {name: tensor[second] for name, tensor in of_x.items()}
            if second.size
            else None,
            neighbour_rows=torch.from_numpy(second),
            neighbour_psi=_float(drawn.weights[second]),
            facts=facts,
            **self._transfer(drawn, locations),
        )

    def _times(self, u: Floats) -> NDArray[Any]:
        if self.settings.times is not None:
            return self.settings.times(u)
        return np.floor(u * self.settings.timesteps).astype(np.int64)

    def _transfer(self, drawn: _Drawn, locations: Integers) -> dict[str, Any]:
        """t2h: the candidates are the rows of the global batch that have these rows' shape."""
        density = self.rows.log_density
        if drawn.transfer is None or density is None:
            return {}
        slots = np.arange(self.settings.global_batch, dtype=np.int64)
        rows = self.sampler.rows(drawn.step, slots, len(slots))
        everywhere = self._locations(drawn.step, slots, rows)
        alike = np.flatnonzero(self.latents.layouts(everywhere) == self.latents.layouts(locations[:1]))
        return {
            "log_density": _float(density[drawn.rows]),
            "transfer_draws": _float(drawn.transfer),
            "transfer_x0": self._x0(drawn.step, slots[alike], everywhere[alike]),
            "transfer_log_density": _float(density[rows[alike]]),
            "transfer_own": torch.from_numpy(np.searchsorted(slots[alike], drawn.slots)),
        }

    def _locations(self, step: int, slots: Integers, rows: Integers) -> Integers:
        """Where the latents are: of the mirrored image at every second draw, where images may be mirrored."""
        if self.rows.flipped is None:
            return self.rows.latents[rows]
        flips = self._uniform(Stream.FLIP, step, slots) < 0.5
        return np.where(flips, self.rows.flipped[rows], self.rows.latents[rows])

    def _x0(self, step: int, slots: Integers, locations: Integers) -> Tensor:
        """Z = mean + std * e, sampled anew each time a record is drawn."""
        moments = self.latents.read(locations)
        noise = self._normals(Stream.LATENT, step, slots, tuple(moments["mean"].shape[1:]))
        return moments["mean"] + moments["std"] * noise

    def _noise(self, step: int, slots: Integers, shape: tuple[int, ...]) -> Tensor:
        noise = self._normals(Stream.NOISE, step, slots, shape)
        if self.settings.noise_offset > 0:
            offset = self._normals(Stream.NOISE_OFFSET, step, slots, (shape[0], 1, 1))
            noise = noise + self.settings.noise_offset * offset
        return noise

    def _normals(self, stream: Stream, step: int, slots: Integers, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(normals(self.settings.seed, stream, step, slots, shape))

    def _uniform(self, stream: Stream, step: int, slots: Integers) -> Floats:
        return uniform(self.settings.seed, stream, step, slots)[:, 0]

    def _caption_kept(self, step: int, slots: Integers) -> NDArray[np.bool_]:
        settings = self.settings
        if settings.method == "cbdm":  # its authors toss one coin for the whole batch
            coin = self._uniform(Stream.CONDITION_COIN, step, np.zeros(1, dtype=np.int64))[0]
            return np.full(len(slots), coin >= settings.cbdm_drop)
        return np.asarray(self._uniform(Stream.DROPOUT, step, slots) >= settings.caption_dropout)

    def _neighbours(
        self, step: int, slots: Integers, rows: Integers, kept: NDArray[np.bool_]
    ) -> tuple[Integers, Floats]:
        """For each row another record, and the weight of its term (0: no second forward)."""
        if self.settings.method == "pogdiff":
            return self._pog_neighbours(step, slots, rows, kept)
        if self.settings.method == "cbdm":
            return self._uniform_records(step, slots), kept.astype(np.float64)
        return rows, np.zeros(len(rows))

    def _pog_neighbours(
        self, step: int, slots: Integers, rows: Integers, kept: NDArray[np.bool_]
    ) -> tuple[Integers, Floats]:
        settings, pairs = self.settings, self.rows.pairs
        assert pairs is not None, "pogdiff trains on pairs"
        drawn = pairs.draw(rows, self._uniform(Stream.NEIGHBOUR, step, slots))
        density = np.ones(len(rows)) if self.rows.inverse_density is None else self.rows.inverse_density[rows]
        weights = psi(
            drawn.similarity, drawn.same_identity, density, a1=settings.a1, a2=settings.a2, terms=settings.psi_terms
        )
        weights = np.where(kept & ~drawn.same_text, weights, 0.0)
        if settings.roulette is not None:
            probability = roulette_probability(weights, settings.roulette)
            accepted = self._uniform(Stream.ROULETTE, step, slots) < probability
            weights = np.where(accepted, weights / np.maximum(probability, 1e-300), 0.0)
        return drawn.neighbour_row, weights

    def _uniform_records(self, step: int, slots: Integers) -> Integers:
        draws = uniform(self.settings.seed, Stream.UNIFORM_RECORD, step, slots, 2)
        if self.settings.cbdm_uniform == "record":
            return np.floor(draws[:, 0] * len(self.rows.identity)).astype(np.int64)
        identities = np.floor(draws[:, 0] * len(self._identity_counts)).astype(np.int64)
        photos = np.floor(draws[:, 1] * self._identity_counts[identities]).astype(np.int64)
        return self._by_identity[self._identity_starts[identities] + photos]


def _float(values: Floats) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
