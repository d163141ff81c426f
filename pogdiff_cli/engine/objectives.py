"""One objective per training method: what the trainer minimises, given a batch and the model's prediction.

An objective never draws: timesteps, noise, neighbours, roulette and transfer draws come with the batch. It
never waits for the device either. Every figure it returns is a sum over rows divided by one denominator, so
the micro-batches of an accumulated step, whatever their sizes, add up to the mean over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from pogdiff_cli.engine.terms import Batch, Loss, Predict, Preserving, TargetOf, concat_conditions
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.method import cbdm_regulariser, mean_square, oriented_transfer, pog_loss, transferred_noise

T = TypeVar("T")
Method = Literal["pogdiff", "vanilla", "cbdm", "t2h"]
NeighbourGrad = Literal["both", "stop"]
Forwards = Literal["as needed", "always"]


class Objective(Protocol):
    """What the trainer calls. ``denominator``: rows of the accumulated batch; if None, the rows given."""

    def __call__(self, predict: Predict, batch: Batch, *, denominator: float | None = None) -> Loss:
        """Predict, and weigh the errors."""
        ...


@dataclass(frozen=True, kw_only=True)
class Vanilla:
    """w mean|h - target|^2."""

    def __call__(self, predict: Predict, batch: Batch, *, denominator: float | None = None) -> Loss:
        """One forward."""
        h = predict(batch.x_t, batch.t, dict(batch.condition))
        return _loss(denominator, batch, denoise=batch.weight * mean_square(h, batch.target))


@dataclass(frozen=True, kw_only=True)
class PogDiff:
    """Eq. 13. ``both``: gradient through h and h', one batched forward. ``stop``: h' is a fixed target.

    ``always`` makes as many forwards whatever the rows: a model sharded over processes needs all of them in each.
    """

    neighbour_grad: NeighbourGrad = "both"
    forwards: Forwards = "as needed"

    def __call__(self, predict: Predict, batch: Batch, *, denominator: float | None = None) -> Loss:
        """One forward of b + r rows, or one of r without a graph and one of b; vanilla's where r = 0."""
        pair = _neighbours(batch)
        if pair is None:
            if self.neighbour_grad == "stop" and self.forwards == "always":
                with torch.no_grad():
                    predict(batch.x_t[:1], batch.t[:1], {name: tensor[:1] for name, tensor in batch.condition.items()})
            return VANILLA(predict, batch, denominator=denominator)
        if self.neighbour_grad == "stop":
            with torch.no_grad():
                h_neighbour = predict(batch.x_t[pair.rows], batch.t[pair.rows], dict(pair.condition))
            h = predict(batch.x_t, batch.t, dict(batch.condition))
        else:
            h, h_neighbour = _predict_both(predict, batch, pair)
        # scattered to all rows: Eq. 13 stays in one place, and rows without a neighbour get exactly 0
        psi = batch.weight.new_zeros(len(h)).index_copy(0, pair.rows, pair.psi.to(batch.weight.dtype))
        terms = pog_loss(h, h.index_copy(0, pair.rows, h_neighbour.to(h.dtype)), batch.target, psi, batch.weight)
        return _loss(denominator, batch, denoise=terms.denoise, neighbour=terms.neighbour)


@dataclass(frozen=True, kw_only=True)
class Cbdm:
    """w (mean|h - target|^2 + activity (t / T) tau (|h - sg(h')|^2 + gamma |sg(h) - h'|^2)), y' uniform."""

    tau: float = 1.0
    gamma: float = 0.25
    num_train_timesteps: int = 1000

    def __call__(self, predict: Predict, batch: Batch, *, denominator: float | None = None) -> Loss:
        """One forward of b + r rows."""
        pair = _neighbours(batch)
        if pair is None:
            return VANILLA(predict, batch, denominator=denominator)
        h, h_uniform = _predict_both(predict, batch, pair)
        regulariser = cbdm_regulariser(
            h[pair.rows],
            h_uniform,
            batch.t[pair.rows],
            self.num_train_timesteps,
            tau=self.tau,
            gamma=self.gamma,
        )
        return _loss(
            denominator,
            batch,
            denoise=batch.weight * mean_square(h, batch.target),
            neighbour=batch.weight[pair.rows] * pair.psi * regulariser,
        )


@dataclass(frozen=True, kw_only=True)
class OrientedCalibration:
    """Vanilla with targets moved towards records of higher density (t2h).

    Candidates are the rows of the whole global batch, so that targets do not depend on how it is split. The
    transfer is defined on the variance-preserving path; ``preserving`` scales the x_t of another path to it, and
    is None where x_t lies there. The transfer gives a noise; ``target_of`` turns it into the model's parametrisation,
    and is None where the model predicts that noise. A row that keeps its own x0 keeps the batch's target, bit for bit.
    """

    temperature: float = 1.0
    target_of: TargetOf | None = None
    preserving: Preserving | None = None

    def __call__(self, predict: Predict, batch: Batch, *, denominator: float | None = None) -> Loss:
        """One forward."""
        abar = _required(batch.alphas_cumprod_t, "alphas_cumprod_t")
        x_t = batch.x_t if self.preserving is None else self.preserving(batch.x_t, batch.t)
        itself = batch.transfer_x0 is None
        candidates = batch.x0 if batch.transfer_x0 is None else batch.transfer_x0
        transfer = oriented_transfer(
            x_t,
            candidates,
            abar,
            _required(batch.log_density if itself else batch.transfer_log_density, "log_density"),
            _required(batch.transfer_draws, "transfer_draws"),
            own=None if itself else _required(batch.transfer_own, "transfer_own"),
            temperature=self.temperature,
        )
        x0 = candidates[transfer.index]
        noise = transferred_noise(x_t, x0, abar.to(x_t.dtype))
        target = noise if self.target_of is None else self.target_of(x0, noise, batch.t)
        moved = transfer.moved.bool().reshape(-1, *[1] * (target.ndim - 1))
        h = predict(batch.x_t, batch.t, dict(batch.condition))
        error = mean_square(h, torch.where(moved, target, batch.target))
        return _loss(denominator, batch, denoise=batch.weight * error, transfer_rate=transfer.moved)


VANILLA = Vanilla()


def make_objective(
    method: Method,
    *,
    neighbour_grad: NeighbourGrad = "both",
    tau: float = 1.0,
    gamma: float = 0.25,
    num_train_timesteps: int = 1000,
    transfer_temperature: float = 1.0,
    target_of: TargetOf | None = None,
    forwards: Forwards = "as needed",
    preserving: Preserving | None = None,
) -> Objective:
    """The objective of a training method; each takes what concerns it and passes over the rest."""
    makers: dict[str, Callable[[], Objective]] = {
        "vanilla": Vanilla,
        "pogdiff": lambda: PogDiff(neighbour_grad=neighbour_grad, forwards=forwards),
        "cbdm": lambda: Cbdm(tau=tau, gamma=gamma, num_train_timesteps=num_train_timesteps),
        "t2h": lambda: OrientedCalibration(
            temperature=transfer_temperature, target_of=target_of, preserving=preserving
        ),
    }
    if method not in makers:
        raise PogdiffError(
            f"Unknown training method {method!r}.",
            hint=f"Choose from {', '.join(makers)}.",
            exit_code=Exit.USAGE,
        )
    return makers[method]()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Neighbours:
    condition: Mapping[str, Tensor]
    rows: Tensor
    psi: Tensor


def _neighbours(batch: Batch) -> _Neighbours | None:
    """The rows with a second caption; None where there are none (by shape: no wait for the device)."""
    if batch.neighbour_rows is None or len(batch.neighbour_rows) == 0:
        return None
    return _Neighbours(
        condition=_required(batch.neighbour, "neighbour"),
        rows=batch.neighbour_rows,
        psi=_required(batch.neighbour_psi, "neighbour_psi"),
    )


def _predict_both(predict: Predict, batch: Batch, pair: _Neighbours) -> tuple[Tensor, ...]:
    """(h (b, ...), h' (r, ...)) of one batched forward."""
    h = predict(
        torch.cat([batch.x_t, batch.x_t[pair.rows]]),
        torch.cat([batch.t, batch.t[pair.rows]]),
        concat_conditions(batch.condition, pair.condition),
    )
    return torch.split(h, [len(batch.x_t), len(pair.rows)])


def _required(value: T | None, name: str) -> T:
    if value is None:
        raise ValueError(f"this objective needs Batch.{name}")
    return value


def _loss(denominator: float | None, batch: Batch, **rows: Tensor) -> Loss:
    """Sum the terms over their rows; all but ``transfer_rate``, which is a count, belong to the loss."""
    count = float(len(batch.x_t)) if denominator is None else denominator
    sums = {name: term.sum() / count for name, term in rows.items()}
    value = torch.stack([term for name, term in sums.items() if name != "transfer_rate"]).sum()
    return Loss(value=value, parts={name: term.detach() for name, term in sums.items()})
