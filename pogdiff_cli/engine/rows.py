"""What a training step is drawn from and what it is handed: columns of records, settings, batches on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pogdiff_cli.data.pairs import Pairs
from pogdiff_cli.method import PsiTerm

_ALIGNED = 64  # bytes: where one tensor of a packed batch may start
Method = Literal["pogdiff", "vanilla", "cbdm", "t2h"]


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """The n training records in columns: what a draw of a record leads to.

    Numbers only: whatever n is, a batch costs the same, and data workers share the memory.
    """

    latents: NDArray[np.int64]  # (n,) locations in the cache of latents
    texts: NDArray[np.int64]  # (n,) locations in the cache of texts: equal where captions are
    empty_text: int  # location of the empty caption
    identity: NDArray[np.int32]
    loss_weight: NDArray[np.float64]
    flipped: NDArray[np.int64] | None = None  # (n,) locations of the mirrored images' latents
    pairs: Pairs | None = None
    inverse_density: NDArray[np.float64] | None = None
    log_density: NDArray[np.float64] | None = None
    image_condition: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # each (n, ...): belongs to x


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """All that decides the draws; images are mirrored where the rows know the mirrored latents."""

    method: Method
    seed: int
    global_batch: int
    rows_per_micro_batch: int
    timesteps: int
    caption_dropout: float
    noise_offset: float
    a1: float
    a2: float
    psi_terms: tuple[PsiTerm, ...]
    roulette: float | None
    cbdm_drop: float
    cbdm_uniform: Literal["record", "identity"]
    times: Callable[[NDArray[np.float64]], NDArray[Any]] | None = None  # None: floor(u * timesteps)


@dataclass(frozen=True, kw_only=True)
class HostBatch:
    """The b rows of a micro-batch whose latents have one shape. ``neighbour_rows`` need a second forward.

    t2h chooses among c candidates: the rows of the global batch with latents of this shape.
    """

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
    transfer_x0: Tensor | None = None  # (c, ...)
    transfer_log_density: Tensor | None = None  # (c,)
    transfer_own: Tensor | None = None  # (b,): which candidate each row is
    kind: Literal["data", "prior"] = "data"
    facts: dict[str, float] = field(default_factory=dict)  # means over all rows of the micro-batch, whatever shape

    def pin_memory(self) -> HostBatch:
        """The same in page-locked memory, from which a GPU copies while it computes; data loaders call it."""
        return HostBatch(**{each.name: _pinned(getattr(self, each.name)) for each in fields(self)})

    def __reduce__(self) -> tuple[Callable[..., HostBatch], tuple[Any, ...]]:
        # from a data worker every tensor takes a round trip of its own, some half a millisecond: they travel as one
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        parts = [
            (name, key, tensor)
            for name, value in values.items()
            for key, tensor in (value.items() if isinstance(value, dict) else ((None, value),))
            if isinstance(tensor, Tensor)
        ]
        rest = {name: value for name, value in values.items() if name not in {name for name, _, _ in parts}}
        sizes = [-(-tensor.nbytes // _ALIGNED) * _ALIGNED for _, _, tensor in parts]
        packed, start = torch.empty(sum(sizes), dtype=torch.uint8), 0
        layout = []
        for (name, key, tensor), size in zip(parts, sizes, strict=True):
            packed[start : start + tensor.nbytes].view(tensor.dtype).copy_(tensor.reshape(-1))
            layout.append((name, key, tensor.dtype, tuple(tensor.shape), start, tensor.nbytes))
            start += size
        return _unpacked, (packed, layout, rest)


def _unpacked(packed: Tensor, layout: list[tuple[Any, ...]], rest: dict[str, Any]) -> HostBatch:
    values = dict(rest)
    for name, key, dtype, shape, start, size in layout:
        tensor = packed[start : start + size].view(dtype).reshape(shape)
        if key is None:
            values[name] = tensor
        else:
            values.setdefault(name, {})[key] = tensor
    return HostBatch(**values)


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {name: _pinned(item) for name, item in value.items()}
    return value
