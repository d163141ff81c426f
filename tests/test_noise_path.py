"""Epsilon, v and flow: one method behind three parametrisations, and the timesteps that each draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from pogdiff_cli.engine.objectives import make_objective
from pogdiff_cli.engine.terms import Batch
from pogdiff_cli.models.noise_path import NoisePath, RectifiedFlow, Times, VariancePreserving


def linear_eps(weight: Tensor, x: Tensor, condition: Tensor) -> Tensor:
    """One network function, as a prediction of the noise from the variance-preserving point."""
    return torch.tanh(x @ weight) + condition


def native(kind: str, eps: Tensor, x_vp: Tensor, abar: Tensor) -> Tensor:
    """The same prediction, as each parametrisation returns it."""
    a, s = abar.sqrt()[:, None], (1 - abar).sqrt()[:, None]
    if kind == "epsilon":
        return eps
    if kind == "v_prediction":
        return (eps - s * x_vp) / a
    sigma = s / (a + s)
    x_flow = x_vp * (1 - sigma) / a
    return (eps - x_flow) / (1 - sigma)


def paths() -> dict[str, NoisePath]:
    times = Times(count=1000, unit="step")
    schedules = {
        kind: DDPMScheduler(prediction_type=kind, beta_schedule="scaled_linear") for kind in ("epsilon", "v_prediction")
    }
    flow = RectifiedFlow(Times(count=1000, unit="level"))
    return {kind: VariancePreserving(scheduler, times) for kind, scheduler in schedules.items()} | {"flow": flow}


@pytest.mark.parametrize("psi", [0.0, 3.0])
@pytest.mark.parametrize("step", [50, 500, 900])
def test_epsilon_v_and_flow_give_one_gradient_direction_for_both_terms(psi: float, step: int) -> None:
    # one row: there the parametrisations differ by one factor, d_eps = alpha d_v = (1 - sigma) d_flow
    known = paths()
    abar = known["epsilon"].alphas_cumprod(torch.tensor([step])).double()
    a, s = float(abar.sqrt()), float((1 - abar).sqrt())
    sigma = s / (a + s)
    generator = torch.Generator().manual_seed(step)
    x0, noise, y, y_other, start = torch.randn(5, 1, 6, generator=generator, dtype=torch.float64)
    gradients = {}
    for kind, path in known.items():
        t = torch.tensor([1000 * sigma]).double() if kind == "flow" else torch.tensor([step])
        weight = (start.T @ start).requires_grad_()

        def predict(x_t: Tensor, t: Tensor, c: dict[str, Tensor], kind=kind, path=path, weight=weight) -> Tensor:
            x_vp = path.variance_preserving(x_t, t)
            return native(kind, linear_eps(weight, x_vp, c["y"]), x_vp, abar)

        batch = Batch(
            x0=x0,
            x_t=path.add_noise(x0, noise, t),
            noise=noise,
            target=path.target(x0, noise, t),
            t=t,
            condition={"y": y},
            weight=torch.ones(1, dtype=torch.float64),
            neighbour={"y": y_other},
            neighbour_rows=torch.tensor([0]),
            neighbour_psi=torch.tensor([psi], dtype=torch.float64),
        )
        objective = make_objective("pogdiff", neighbour_grad="stop")
        objective(_rowwise(predict), batch).value.backward()
        gradients[kind] = weight.grad
    for kind, factor in (("v_prediction", a), ("flow", 1 - sigma)):
        torch.testing.assert_close(gradients[kind] * factor**2, gradients["epsilon"], rtol=2e-4, atol=1e-6)


def _rowwise(predict: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x_t, t, c: torch.cat(
        [predict(x_t[i : i + 1], t[i : i + 1], {k: v[i : i + 1] for k, v in c.items()}) for i in range(len(x_t))]
    )


def test_the_transfer_of_t2h_is_the_same_on_both_paths() -> None:
    known = paths()
    abar = known["epsilon"].alphas_cumprod(torch.tensor([950] * 4))
    sigma = (1 - abar).sqrt() / (abar.sqrt() + (1 - abar).sqrt())
    torch.testing.assert_close(known["flow"].alphas_cumprod(1000 * sigma), abar, rtol=1e-4, atol=1e-6)
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 4, 6)
    losses = {}
    for kind, t in (("epsilon", torch.tensor([950] * 4)), ("flow", 1000 * sigma)):
        path = known[kind]
        batch = Batch(
            x0=x0,
            x_t=path.add_noise(x0, noise, t),
            noise=noise,
            target=path.target(x0, noise, t),
            t=t,
            condition={},
            weight=torch.ones(4),
            alphas_cumprod_t=path.alphas_cumprod(t),
            log_density=torch.arange(4.0),
            transfer_draws=torch.tensor([0.9, 0.6, 0.8, 0.1]),
        )
        objective = make_objective(
            "t2h", transfer_temperature=1e6, target_of=path.target, preserving=path.variance_preserving
        )
        # the prediction that is right for the row's own x0: what is left is the transfer
        losses[kind] = objective(lambda x_t, t, c, batch=batch: batch.target, batch)
    assert losses["flow"].parts["transfer_rate"] == losses["epsilon"].parts["transfer_rate"] == 0.75
    # moving the target from x0 to x0_j moves eps by a d / s and the velocity by d / sigma; sigma = s / (a + s)
    a, s = float(abar[0].sqrt()), float((1 - abar[0]).sqrt())
    ratio = ((a + s) / a) ** 2
    torch.testing.assert_close(losses["flow"].value, losses["epsilon"].value * ratio, rtol=1e-3, atol=1e-6)


def test_timesteps_follow_their_density() -> None:
    u = (np.arange(20_000) + 0.5) / 20_000
    levels = Times(count=1000, unit="level", sampling="logit_normal", logit_mean=0.5, logit_std=0.8)(u) / 1000
    for level in (0.2, 0.5, 0.9):
        z = (math.log(level / (1 - level)) - 0.5) / 0.8
        assert np.mean(levels <= level) == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)), abs=1e-3)
    shifted = Times(count=1000, unit="level", shift=3.0)(np.array([0.0, 0.5, 0.999999]))
    np.testing.assert_allclose(shifted, [1.0, 750.0, 1000.0], rtol=1e-4)  # 3 / 2 / (1 + 2 / 2)
    steps = Times(count=1000, unit="step")(np.array([0.0, 0.4567, 0.99999]))
    assert steps.tolist() == [0, 456, 999]
