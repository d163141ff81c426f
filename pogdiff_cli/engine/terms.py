"""What an objective is given, what it gives back, what a step of the optimizer does, and a run takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Condition = dict[str, Tensor]
Predict = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x_t (b, ...), t (b,), condition) -> the model's native prediction, of the shape of x_t."""
TargetOf = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x0 (b, ...), noise (b, ...), t (b,)) -> target as the model is parametrised: the adapter's ``target``."""
Preserving = Callable[[Tensor, Tensor], Tensor]
"""(x_t (b, ...), t (b,)) -> x_t on the variance-preserving path: the adapter's ``variance_preserving``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One micro-batch of b rows, of which r need a second caption.

    ``weight`` is w(t) times the row's loss weight and multiplies every term of the row. A row that is not in
    ``neighbour_rows`` has no neighbour term: psi = 0, dropped caption, same text, or lost roulette.
    ``neighbour_psi`` is psi / p under roulette; for cbdm it is the activity of the regulariser, 1 where the
    condition was kept.
    """

    x0: Tensor  # (b, ...)
    x_t: Tensor  # (b, ...)
    noise: Tensor  # (b, ...)
    target: Tensor  # (b, ...)
    t: Tensor  # (b,)
    condition: Mapping[str, Tensor]  # each (b, ...)
    weight: Tensor  # (b,)
    neighbour: Mapping[str, Tensor] | None = None  # each (r, ...)
    neighbour_rows: Tensor | None = None  # (r,), int64, each row at most once
    neighbour_psi: Tensor | None = None  # (r,)
    alphas_cumprod_t: Tensor | None = None  # (b,), t2h
    log_density: Tensor | None = None  # (b,), t2h
    transfer_draws: Tensor | None = None  # (b,), uniform in [0, 1), t2h
    transfer_x0: Tensor | None = None  # (c, ...), t2h's candidates; if None, the rows themselves
    transfer_log_density: Tensor | None = None  # (c,), of the candidates
    transfer_own: Tensor | None = None  # (b,), int64: which candidate each row is


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """``value``: the scalar to differentiate. ``parts``: detached scalars on the device, additive too."""

    value: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Taken:
    """One optimizer step, still on the device: loss parts (0 where it was left out), and whether it was finite."""

    parts: dict[str, Tensor]
    finite: Tensor


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run took."""

    steps: int
    resumed_at: int
    seconds: float
    seconds_per_step: float
    skipped_steps: int
    pieces: int  # into which micro-batches were cut for want of memory


def concat_conditions(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Condition:
    """Conditions of b and of r rows -> conditions of b + r rows, key by key."""
    if first.keys() != second.keys():
        raise ValueError(f"conditions differ in their keys: {sorted(first)} and {sorted(second)}")
    return {key: torch.cat([first[key], second[key]]) for key in first}
