"""The method of PoGDiff: Eqs. 2 and 6 to 13, Algorithm 1, and the losses of its baselines.

Statistics over the training set are float64 numpy; losses are torch. Symbols are the paper's: ``s`` a cosine
similarity between images, ``psi`` the neighbour's weight, ``h = f(x_t, t, y)`` and ``h' = f(x_t, t, y')`` the
model's native prediction (epsilon, v or flow velocity) under the caption and under the neighbour's caption.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pogdiff_cli.errors import Exit, PogdiffError

Array = NDArray[np.float64]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Scale = Literal["standardised", "literal"]
Prediction = Literal["epsilon", "v_prediction", "flow"]
PsiTerm = Literal["img_sim", "inv_density"]

PSI_TERMS: tuple[PsiTerm, ...] = ("img_sim", "inv_density")  # Eq. 7
MAD_TO_DEVIATION = 1.4826  # a normal's standard deviation over its median absolute deviation
LOG_TEN = math.log(10.0)


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """N(mean, precision^-1 I)."""

    mean: Tensor
    precision: Tensor


@dataclass(frozen=True, kw_only=True)
class Roulette:
    """Evaluate a row's neighbour with ``probability``; where evaluated, ``weight`` stands for psi."""

    probability: Array
    weight: Array


@dataclass(frozen=True, kw_only=True)
class PogTerms:
    """The two terms of Eq. 13, one value per sample (b,), each weighted already."""

    denoise: Tensor
    neighbour: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum (b,): Eq. 13 before the expectation."""
        return self.denoise + self.neighbour


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Oriented calibration: row i takes the target of row ``index[i]``."""

    index: Tensor  # (b,), int64
    moved: Tensor  # (b,), float32: 1 where that is another row


def product_of_gaussians(mu1: Tensor, lambda1: Tensor, mu2: Tensor, lambda2: Tensor) -> Gaussian:
    """Eq. (2): N(mu1, 1/l1) o N(mu2, 1/l2) = N((l1 mu1 + l2 mu2) / (l1 + l2), 1 / (l1 + l2))."""
    precision = lambda1 + lambda2
    return Gaussian(mean=(lambda1 * mu1 + lambda2 * mu2) / precision, precision=precision)


def neighbour_weights(sims: Floats) -> Array:
    """Eq. (8): sims (n, k) -> weights s_j / sum_j s_j (n, k), rows sum to 1; uniform where no s_j > 0."""
    s = np.maximum(np.asarray(sims, dtype=np.float64), 0.0)
    total = s.sum(axis=-1, keepdims=True)
    uniform = np.full_like(s, 1.0 / s.shape[-1])
    return np.where(total > 0.0, s / np.where(total > 0.0, total, 1.0), uniform)


def log_image_similarity(s: Floats, same: Bools, *, a1: float = 1.0, a2: float = 1.0) -> Array:
    """Eq. (9): (a1 + a2 [I(x) != I(x')]) log s, -inf where s <= 0. s, same: any one shape -> that shape."""
    s = np.asarray(s, dtype=np.float64)
    power = a1 + a2 * np.logical_not(same)
    positive = s > 0.0
    # clamp before the power: a negative base under a fractional exponent is NaN
    return np.where(positive, power * np.log(np.where(positive, s, 1.0)), -np.inf)


def image_similarity(s: Floats, same: Bools, *, a1: float = 1.0, a2: float = 1.0) -> Array:
    """Eq. (9): max(0, s)^(a1 + a2 [I(x) != I(x')])."""
    return np.exp(log_image_similarity(s, same, a1=a1, a2=a2))


def inverse_text_density(
    log_density: Floats,
    *,
    a3: float = 1.0,
    scale: Scale = "standardised",
    temperature: float = 1.0,
    mean: float = 1.0,
    clip: float = LOG_TEN,
) -> Array:
    """Eqs. (10, 11): psi_inv = 1 / (a3 p(y)). log_density (n,), the whole training set -> (n,).

    ``literal``: exp(-log p) / a3 to the letter; ``temperature``, ``mean`` and ``clip`` change nothing, but a
    result that float32 cannot hold, or that lies beyond exp(+-clip) for every record, is refused.
    ``standardised``: exp(-temperature (log p - median) / spread), its exponent clipped to +-clip, scaled to
    the set mean ``mean``, divided by a3. A higher temperature favours the rare more; at 0 all weigh the same.
    """
    logp = np.asarray(log_density, dtype=np.float64)
    if not np.isfinite(logp).all():
        raise PogdiffError(
            f"The text density is not finite for {int((~np.isfinite(logp)).sum())} of {logp.size} captions.",
            hint="Fit it again with a lower learning rate.",
            exit_code=Exit.NON_FINITE,
        )
    if not a3 > 0.0:
        raise PogdiffError(f"a3 is {a3}, and Eq. 11 divides by it.", hint="Set a3 above 0.", exit_code=Exit.USAGE)
    if scale == "literal":
        return _literal_inverse(logp, a3, clip)
    contrast = np.clip(-temperature * _standardised(logp), -clip, clip)
    weight: Array = np.exp(contrast)
    return weight * (mean / (float(weight.mean()) * a3))


def _literal_inverse(logp: Array, a3: float, clip: float) -> Array:
    log_weight = -logp - math.log(a3)
    low, high = float(log_weight.min()), float(log_weight.max())
    overflows = high > math.log(np.finfo(np.float32).max)
    if overflows or bool((np.abs(log_weight) > clip).all()):
        reason = "float32 cannot hold that" if overflows else f"all of it lies beyond +-{clip:.1f}"
        raise PogdiffError(
            f"Eq. 11 to the letter: log psi_inv runs from {low:.1f} to {high:.1f}, and {reason}.",
            hint=f'Use density.scale "standardised", or a3 near exp({np.median(-logp):.1f}).',
        )
    weight: Array = np.exp(log_weight)
    return weight


def _standardised(logp: Array) -> Array:
    """(log p - median) / spread, by the median absolute deviation; zeros where nothing differs."""
    median = float(np.median(logp))
    deviation = float(logp.std())
    if deviation <= 1e-9 * max(1.0, abs(median)):
        return np.zeros_like(logp)
    spread = MAD_TO_DEVIATION * float(np.median(np.abs(logp - median)))
    # one caption may fill over half the set: its copies differ by rounding alone, which is no spread
    return (logp - median) / (spread if spread > 1e-6 * deviation else deviation)


def psi(
    s: Floats,
    same: Bools,
    inverse_density: Floats,
    *,
    a1: float = 1.0,
    a2: float = 1.0,
    terms: Collection[PsiTerm] = PSI_TERMS,
) -> Array:
    """Eqs. (7, 12): psi_img-sim(x, x') psi_inv-txt-den(y); a term left out is 1 (Table 5)."""
    log_psi = np.zeros(np.broadcast_shapes(np.shape(s), np.shape(inverse_density)))
    if "img_sim" in terms:
        log_psi = log_psi + log_image_similarity(s, same, a1=a1, a2=a2)
    if "inv_density" in terms:
        with np.errstate(divide="ignore"):
            log_psi = log_psi + np.log(np.asarray(inverse_density, dtype=np.float64))
    return np.exp(log_psi)


def roulette_probability(psi: Floats, c: float) -> Array:
    """How often a row's neighbour branch is evaluated: p = min(1, psi / c). psi (b,) -> (b,)."""
    if not c > 0.0:
        raise PogdiffError(f"The roulette's c is {c}.", hint="Set it above 0, or null.", exit_code=Exit.USAGE)
    return np.minimum(1.0, np.asarray(psi, dtype=np.float64) / c)


def roulette(psi: Floats, c: float) -> Roulette:
    """No bias: p = min(1, psi / c) times the weight psi / p = max(psi, c) (0 where psi = 0) is psi."""
    value = np.asarray(psi, dtype=np.float64)
    weight = np.where(value > 0.0, np.maximum(value, c), 0.0)
    return Roulette(probability=roulette_probability(value, c), weight=weight)


def min_snr_weight(snr: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """w(t) = min(snr, gamma) on the error of x0, as a weight on that of the native prediction. (b,) -> (b,).

    epsilon: d_x0^2 = d_eps^2 / snr; v: d_x0^2 = d_v^2 / (snr + 1); flow: d_x0^2 = sigma^2 d_v^2 with
    sigma = 1 / (1 + sqrt(snr)).
    """
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1.0)  # not min(snr, gamma) / snr: 0 / 0 at the last step of a zero-snr schedule
    if prediction == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1.0)
    return snr.clamp(max=gamma) / (1.0 + snr.sqrt()).square()


def logit_normal_quantile(u: Array, *, mean: float = 0.0, std: float = 1.0) -> Array:
    """1 / (1 + exp(-(mean + std Phi^-1(u)))): a uniform draw's place in the logit-normal density. (b,) -> (b,)."""
    normal = torch.special.ndtri(torch.from_numpy(np.asarray(u, dtype=np.float64)))
    quantile: Array = torch.sigmoid(mean + std * normal).numpy()
    return quantile


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """mean|a - b|^2 over all but the first axis, in float32 at least. (b, ...) -> (b,)."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return (a.to(dtype) - b.to(dtype)).square().flatten(1).mean(1)


def pog_loss(h: Tensor, h_neighbour: Tensor, target: Tensor, psi: Tensor, w: Tensor) -> PogTerms:
    """Eq. (13): w (mean|h - target|^2 + psi mean|h' - h|^2). (b, ...) and psi, w (b,) -> terms (b,)."""
    return PogTerms(denoise=w * mean_square(h, target), neighbour=w * psi * mean_square(h_neighbour, h))


def cbdm_regulariser(
    h: Tensor,
    h_uniform: Tensor,
    t: Tensor,
    T: int,  # noqa: N803 (the paper's symbol)
    *,
    tau: float = 1.0,
    gamma: float = 0.25,
) -> Tensor:
    """CBDM: (t / T) tau (mean|h - sg(h')|^2 + gamma mean|sg(h) - h'|^2), y' drawn uniformly. -> (b,)."""
    pull = mean_square(h, h_uniform.detach()) + gamma * mean_square(h.detach(), h_uniform)
    return t.to(pull.dtype) / T * tau * pull


@torch.no_grad()
def oriented_transfer(
    x_t: Tensor,
    x0: Tensor,
    alphas_cumprod_t: Tensor,
    log_density: Tensor,
    u: Tensor,
    *,
    own: Tensor | None = None,
    temperature: float = 1.0,
) -> Transfer:
    """T2H: w_ij = softmax_j(-|x_t_i / sqrt(abar_i) - x0_j|^2 / (2 sigma_i^2 temperature)).

    sigma^2 = 1 / abar - 1; j ~ w_i by the uniform draw u_i, and kept only where density(y_j) >= density(y_i),
    else i. x_t (b, ...); abar, u (b,). The candidates are x0 (c, ...) with log_density (c,), and ``own`` (b,) says
    which of them each row is; by default they are the batch itself.
    """
    abar = alphas_cumprod_t.double()
    sigma2 = (1.0 / abar - 1.0).clamp(min=torch.finfo(torch.float64).tiny)
    x = x_t.double().flatten(1) / abar.sqrt()[:, None]
    # float64 and no expanded square: close to t = 0 the distances are small differences of large norms
    distance = torch.cdist(x, x0.double().flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    w = torch.softmax(-distance.square() / (2.0 * sigma2 * temperature)[:, None], dim=1)  # (b, c)
    drawn = (w.cumsum(1) <= u.double()[:, None]).sum(1).clamp(max=len(x0) - 1)
    own = torch.arange(len(w), device=w.device) if own is None else own
    index = torch.where(log_density[drawn] >= log_density[own], drawn, own)
    return Transfer(index=index, moved=(index != own).to(torch.float32))


def transferred_noise(x_t: Tensor, x0: Tensor, alphas_cumprod_t: Tensor) -> Tensor:
    """The noise that leads from x0_j to this x_t: (x_t - sqrt(abar) x0_j) / sqrt(1 - abar). (b, ...)."""
    abar = alphas_cumprod_t.reshape(-1, *[1] * (x_t.ndim - 1))
    return (x_t - abar.sqrt() * x0) / (1.0 - abar).sqrt()
