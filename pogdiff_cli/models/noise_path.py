"""How noise enters: the variance-preserving path of epsilon and v models, and the straight path of flow models.

Both terms of Eq. 13 are differences of native predictions at one x_t. There the parametrisations are affine in one
another (d_eps = alpha_t d_v on the variance-preserving path, d_eps = (1 - sigma) d_v on the straight one), so that
psi means the same for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from diffusers.training_utils import compute_snr
from numpy.typing import NDArray
from torch import Tensor

from pogdiff_cli.method import logit_normal_quantile, min_snr_weight

TimestepSampling = Literal["uniform", "logit_normal"]
_LEAST_SIGNAL = 1e-12  # abar at pure noise: T2H divides by its root


@dataclass(frozen=True, kw_only=True)
class Times:
    """Maps a draw u in [0, 1) to the timestep of a row: a function, so that draws stay functions.

    The quantile q of the density is a step floor(q count) of a schedule (``step``), or the noise level
    sigma = s q / (1 + (s - 1) q) of the straight path, as the timestep count * sigma (``level``), s the schedule's
    own shift.
    """

    count: int
    unit: Literal["step", "level"]
    sampling: TimestepSampling = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 1.0

    def __call__(self, u: NDArray[np.float64]) -> NDArray[Any]:
        """U (b,) -> timesteps (b,): int64 steps, or float32 levels in [1, count]."""
        q = u if self.sampling == "uniform" else logit_normal_quantile(u, mean=self.logit_mean, std=self.logit_std)
        if self.unit == "step":
            return np.minimum(np.floor(q * self.count), self.count - 1).astype(np.int64)
        sigma = self.shift * q / (1.0 + (self.shift - 1.0) * q)
        # the schedule's own bounds: at sigma = 0 nothing is left to predict
        return np.clip(sigma * self.count, 1.0, self.count).astype(np.float32)


class NoisePath(Protocol):
    """What connects data and noise."""

    times: Times

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t, (b, ...)."""
        ...

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The native target, (b, ...)."""
        ...

    def snr_weight(self, t: Tensor, gamma: float | None) -> Tensor:
        """w(t), (b,)."""
        ...

    def alphas_cumprod(self, t: Tensor) -> Tensor:
        """Share of the signal's variance, (b,)."""
        ...

    def variance_preserving(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t scaled to sqrt(abar) x0 + sqrt(1 - abar) noise."""
        ...


class VariancePreserving:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps; the target is eps, or v = sqrt(abar) eps - sqrt(1 - abar) x0."""

    def __init__(self, scheduler: Any, times: Times) -> None:
        self.scheduler, self.times = scheduler, times

    @property
    def prediction_type(self) -> Literal["epsilon", "v_prediction"]:
        """``epsilon`` or ``v_prediction``."""
        return "v_prediction" if self.scheduler.config.prediction_type == "v_prediction" else "epsilon"

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Algorithm 1, line 8."""
        return cast(Tensor, self.scheduler.add_noise(x0, noise, t))

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Eps or v."""
        if self.prediction_type == "v_prediction":
            return cast(Tensor, self.scheduler.get_velocity(x0, noise, t))
        return noise

    def snr_weight(self, t: Tensor, gamma: float | None) -> Tensor:
        """Min-SNR for the model's parametrisation, or ones."""
        if gamma is None:
            return torch.ones(t.shape, device=t.device)
        return min_snr_weight(compute_snr(self.scheduler, t), gamma, self.prediction_type)

    def alphas_cumprod(self, t: Tensor) -> Tensor:
        """The abar_t of each row."""
        return cast(Tensor, self.scheduler.alphas_cumprod.to(t.device)[t])

    def variance_preserving(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t itself."""
        del t
        return x_t


class RectifiedFlow:
    """x_t = (1 - sigma) x0 + sigma eps with t = count * sigma; the target is the velocity eps - x0."""

    def __init__(self, times: Times) -> None:
        self.times = times

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level of each row, (b,)."""
        return t.float() / self.times.count

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Algorithm 1, line 8, on the straight path."""
        sigma = _over(self.sigma(t), x0)
        return (1.0 - sigma) * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity: the derivative of x_t by sigma."""
        del t
        return noise - x0

    def snr_weight(self, t: Tensor, gamma: float | None) -> Tensor:
        """Min-SNR of the velocity with snr = ((1 - sigma) / sigma)^2, or ones."""
        if gamma is None:
            return torch.ones(t.shape, device=t.device)
        sigma = self.sigma(t)
        return min_snr_weight(((1.0 - sigma) / sigma).square(), gamma, "flow")

    def alphas_cumprod(self, t: Tensor) -> Tensor:
        """(1 - sigma)^2 / ((1 - sigma)^2 + sigma^2): abar of the variance-preserving point with the same snr."""
        sigma = self.sigma(t)
        signal, noise = (1.0 - sigma).square(), sigma.square()
        return (signal / (signal + noise)).clamp(min=_LEAST_SIGNAL)

    def variance_preserving(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t / sqrt((1 - sigma)^2 + sigma^2)."""
        sigma = self.sigma(t)
        return x_t / _over(((1.0 - sigma).square() + sigma.square()).sqrt(), x_t)


def _over(rows: Tensor, like: Tensor) -> Tensor:
    return rows.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
