"""The training objectives: gradients against mathematics, and against one another."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pogdiff_cli.engine.objectives import Method, NeighbourGrad, Objective, make_objective
from pogdiff_cli.engine.terms import Batch, Condition, Predict, concat_conditions
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.method import product_of_gaussians, roulette, transferred_noise

B, D = 4, 6
GRADS: tuple[NeighbourGrad, ...] = ("both", "stop")
METHODS: tuple[Method, ...] = ("vanilla", "pogdiff", "cbdm", "t2h")
ALL_ROWS = torch.arange(B)
PSI = torch.tensor([0.2, 0.9, 1.7, 0.05], dtype=torch.float64)
ABAR = torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TinyModel(nn.Module):
    """f(x_t, t, y): a small network that counts the rows and the calls with and without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(0.5 * normal(2 * D + 1, 16, seed=100))
        self.last = nn.Parameter(0.5 * normal(16, D, seed=101))
        self.calls: list[tuple[int, bool]] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls.append((len(x_t), torch.is_grad_enabled()))
        y = condition["text"] + condition["pooled"]
        return torch.tanh(torch.cat([x_t, t[:, None] / 1000, y], dim=1) @ self.first) @ self.last


def condition(rows: int, *, seed: int) -> Condition:
    return {"text": normal(rows, D, seed=seed), "pooled": normal(rows, D, seed=seed + 1)}


def a_batch(**changes: Any) -> Batch:
    x0, noise = normal(B, D, seed=0), normal(B, D, seed=1)
    a = ABAR[:, None]
    batch = Batch(
        x0=x0,
        x_t=a.sqrt() * x0 + (1.0 - a).sqrt() * noise,
        noise=noise,
        target=noise,
        t=torch.tensor([900.0, 600.0, 300.0, 100.0], dtype=torch.float64),
        condition=condition(B, seed=2),
        weight=torch.tensor([1.0, 0.5, 2.0, 0.7], dtype=torch.float64),
        neighbour=condition(B, seed=6),
        neighbour_rows=ALL_ROWS,
        neighbour_psi=PSI,
        alphas_cumprod_t=ABAR,
        log_density=torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64),
        transfer_draws=torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64),
    )
    return replace(batch, **changes)


def with_rows(batch: Batch, rows: Tensor, psi: Tensor) -> Batch:
    assert batch.neighbour is not None
    chosen = {key: value[rows] for key, value in batch.neighbour.items()}
    return replace(batch, neighbour=chosen, neighbour_rows=rows, neighbour_psi=psi)


def gradient(objective: Objective, batch: Batch, *, denominator: float | None = None) -> Tensor:
    model = TinyModel()
    objective(model, batch, denominator=denominator).value.backward()  # type: ignore[no-untyped-call]
    return torch.cat([torch.as_tensor(p.grad).flatten() for p in model.parameters()])


def gradient_of(loss: Callable[[Predict], Tensor]) -> Tensor:
    model = TinyModel()
    loss(model).backward()  # type: ignore[no-untyped-call]
    return torch.cat([torch.as_tensor(p.grad).flatten() for p in model.parameters()])


def eq_13(predict: Predict, batch: Batch) -> Tensor:
    """Algorithm 1, line 10, written out row by row."""
    assert batch.neighbour is not None
    total = torch.zeros((), dtype=torch.float64)
    for i in range(B):
        row = slice(i, i + 1)
        h = predict(batch.x_t[row], batch.t[row], {k: v[row] for k, v in batch.condition.items()})
        g = predict(batch.x_t[row], batch.t[row], {k: v[row] for k, v in batch.neighbour.items()})
        pair = (h - batch.target[row]).square().mean() + PSI[i] * (g - h).square().mean()
        total = total + batch.weight[i] * pair
    return total / B


def test_pogdiff_gradient_is_that_of_algorithm_1() -> None:
    batch = a_batch()
    expected = gradient_of(lambda predict: eq_13(predict, batch))
    torch.testing.assert_close(gradient(make_objective("pogdiff"), batch), expected, rtol=1e-12, atol=1e-13)


def test_both_takes_one_call_and_stop_a_call_without_a_graph_for_the_rows_that_need_it() -> None:
    batch = with_rows(a_batch(), torch.tensor([2, 0]), PSI[[2, 0]])
    both, stop = TinyModel(), TinyModel()
    make_objective("pogdiff", neighbour_grad="both")(both, batch)
    make_objective("pogdiff", neighbour_grad="stop")(stop, batch)
    assert both.calls == [(B + 2, True)]
    assert stop.calls == [(2, False), (B, True)]


def test_where_every_process_has_to_take_part_each_makes_as_many_forwards() -> None:
    some = with_rows(a_batch(), torch.tensor([2, 0]), PSI[[2, 0]])
    none = with_rows(a_batch(), torch.zeros(0, dtype=torch.int64), PSI[:0])
    calls = []
    for batch in (some, none):
        model = TinyModel()
        make_objective("pogdiff", neighbour_grad="stop", forwards="always")(model, batch)
        calls.append(model.calls)
    assert [graph for _, graph in calls[0]] == [graph for _, graph in calls[1]] == [False, True]
    spared = TinyModel()
    make_objective("pogdiff", neighbour_grad="stop")(spared, none)
    assert spared.calls == [(B, True)]


@pytest.mark.parametrize("method", ["pogdiff", "cbdm"])
@pytest.mark.parametrize("rows", [None, torch.zeros(0, dtype=torch.int64)])
def test_without_neighbours_the_gradient_is_vanilla_bit_for_bit(method: Method, rows: Tensor | None) -> None:
    empty = {key: value[:0] for key, value in condition(1, seed=6).items()}
    none = a_batch(neighbour=empty, neighbour_rows=rows, neighbour_psi=PSI[:0])
    vanilla = gradient(make_objective("vanilla"), none)
    for grad in GRADS:
        assert torch.equal(gradient(make_objective(method, neighbour_grad=grad), none), vanilla)


def test_psi_of_zero_is_vanilla_bit_for_bit_with_a_fixed_target() -> None:
    batch = a_batch(neighbour_psi=torch.zeros(B, dtype=torch.float64))
    stop = gradient(make_objective("pogdiff", neighbour_grad="stop"), batch)
    assert torch.equal(stop, gradient(make_objective("vanilla"), batch))


def test_a_row_without_a_neighbour_term_has_the_gradient_of_psi_zero() -> None:
    rows = torch.tensor([3, 1])
    some = with_rows(a_batch(), rows, PSI[rows])
    zeros = a_batch(neighbour_psi=torch.zeros(B, dtype=torch.float64).index_copy(0, rows, PSI[rows]))
    for grad in GRADS:
        objective = make_objective("pogdiff", neighbour_grad=grad)
        torch.testing.assert_close(gradient(objective, some), gradient(objective, zeros), rtol=1e-12, atol=1e-13)


def test_stop_is_regression_to_the_mean_of_the_product_of_gaussians() -> None:
    batch = a_batch()
    assert batch.neighbour is not None
    with torch.no_grad():
        g = TinyModel()(batch.x_t, batch.t, dict(batch.neighbour))
    pog = product_of_gaussians(batch.target, torch.ones(B, 1, dtype=torch.float64), g, PSI[:, None])
    regression = replace(batch, target=pog.mean, weight=batch.weight * (1.0 + PSI))
    expected = gradient(make_objective("vanilla"), regression)
    actual = gradient(make_objective("pogdiff", neighbour_grad="stop"), batch)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def test_cbdm_with_gamma_one_and_activity_psi_is_pogdiff_through_both_branches() -> None:
    batch = a_batch(t=torch.full((B,), 1000.0, dtype=torch.float64))  # t / T = 1
    cbdm = gradient(make_objective("cbdm", gamma=1.0, num_train_timesteps=1000), batch)
    torch.testing.assert_close(cbdm, gradient(make_objective("pogdiff"), batch), rtol=1e-12, atol=1e-13)


def test_roulette_estimates_the_exact_gradient_without_bias() -> None:
    objective, batch = make_objective("pogdiff"), a_batch()
    drawn = roulette(PSI.numpy(), c=1.0)
    expectation = torch.zeros_like(gradient(objective, batch))
    for kept in itertools.product([0, 1], repeat=B):  # every outcome, by its probability: no sampling error
        taken = torch.tensor(kept, dtype=torch.bool)
        p = torch.from_numpy(drawn.probability)
        chance = torch.where(taken, p, 1.0 - p).prod()
        rows = torch.nonzero(taken)[:, 0]
        outcome = with_rows(batch, rows, torch.from_numpy(drawn.weight)[rows])
        expectation = expectation + chance * gradient(objective, outcome)
    torch.testing.assert_close(expectation, gradient(objective, batch), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("kind", ["v_prediction", "flow"])
def test_a_change_of_parametrisation_keeps_the_direction_of_the_gradient(grad: NeighbourGrad, kind: str) -> None:
    abar = torch.full((B,), 0.6, dtype=torch.float64)
    if kind == "v_prediction":  # eps = alpha v + sigma x_t
        alpha, sigma = abar[0].sqrt(), (1.0 - abar[0]).sqrt()
        scale, shift = alpha, sigma
        signal, deviation = alpha, sigma
    else:  # x_t = (1 - sigma) x0 + sigma eps and v = eps - x0: eps = (1 - sigma) v + x_t
        deviation = torch.tensor(0.4, dtype=torch.float64)
        signal = 1.0 - deviation
        scale, shift = signal, torch.tensor(1.0, dtype=torch.float64)
    base = a_batch(weight=torch.ones(B, dtype=torch.float64))
    x_t = signal * base.x0 + deviation * base.noise
    native = replace(base, x_t=x_t, target=(base.noise - shift * x_t) / scale)
    as_epsilon = replace(base, x_t=x_t, target=base.noise)
    objective = make_objective("pogdiff", neighbour_grad=grad)

    def loss_of_epsilon(predict: Predict) -> Tensor:
        def epsilon(x: Tensor, t: Tensor, c: Condition) -> Tensor:
            return scale * predict(x, t, c) + shift * x

        return objective(epsilon, as_epsilon).value

    native_gradient = gradient(objective, native)
    torch.testing.assert_close(gradient_of(loss_of_epsilon), scale.square() * native_gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", ["vanilla", "pogdiff", "cbdm"])
def test_micro_batches_of_different_sizes_add_up_to_the_whole_batch(method: Method) -> None:
    objective, whole = make_objective(method), a_batch()
    sums = torch.zeros_like(gradient(objective, whole))
    parts: dict[str, Tensor] = {}
    for rows in (ALL_ROWS[:1], ALL_ROWS[1:]):
        micro = Batch(
            **{name: getattr(whole, name)[rows] for name in ("x0", "x_t", "noise", "target", "t", "weight")},
            condition={k: v[rows] for k, v in whole.condition.items()},
            neighbour={k: v[rows] for k, v in (whole.neighbour or {}).items()},
            neighbour_rows=torch.arange(len(rows)),
            neighbour_psi=PSI[rows],
        )
        sums = sums + gradient(objective, micro, denominator=B)
        for name, value in objective(TinyModel(), micro, denominator=B).parts.items():
            parts[name] = parts.get(name, torch.zeros(())) + value
    torch.testing.assert_close(sums, gradient(objective, whole), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(parts, objective(TinyModel(), whole).parts, rtol=1e-12, atol=1e-13)


def test_the_parts_add_up_to_the_loss_and_hold_no_graph() -> None:
    loss = make_objective("pogdiff")(TinyModel(), a_batch())
    assert set(loss.parts) == {"denoise", "neighbour"}
    torch.testing.assert_close(loss.parts["denoise"] + loss.parts["neighbour"], loss.value.detach())
    assert not any(part.requires_grad for part in loss.parts.values())


def v_target(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    del t
    return ABAR[:, None].sqrt() * noise - (1.0 - ABAR[:, None]).sqrt() * x0


def test_t2h_close_to_the_data_is_vanilla_bit_for_bit() -> None:
    abar = torch.full((B,), 0.9999, dtype=torch.float64)
    base = a_batch()
    x_t = abar[:, None].sqrt() * base.x0 + (1.0 - abar[:, None]).sqrt() * base.noise
    near = replace(base, x_t=x_t, alphas_cumprod_t=abar)
    assert torch.equal(gradient(make_objective("t2h"), near), gradient(make_objective("vanilla"), near))
    assert make_objective("t2h")(TinyModel(), near).parts["transfer_rate"].item() == 0.0


def test_t2h_regresses_to_the_target_of_the_record_it_drew() -> None:
    # so high a temperature makes all candidates alike: the draws choose rows 3, 2, 3, 0; density keeps row 3
    batch = a_batch(transfer_draws=torch.tensor([0.9, 0.6, 0.8, 0.1], dtype=torch.float64))
    x0 = batch.x0[torch.tensor([3, 2, 3, 3])]
    target = v_target(x0, transferred_noise(batch.x_t, x0, ABAR), batch.t)
    batch = replace(batch, target=v_target(batch.x0, batch.noise, batch.t))
    objective = make_objective("t2h", transfer_temperature=1e12, target_of=v_target)
    expected = gradient(make_objective("vanilla"), replace(batch, target=target))
    torch.testing.assert_close(gradient(objective, batch), expected, rtol=1e-11, atol=1e-12)
    loss = objective(TinyModel(), batch)
    assert loss.parts["transfer_rate"].item() == 0.75
    torch.testing.assert_close(loss.parts["denoise"], loss.value.detach())


def test_v_targets_of_one_x_t_differ_by_the_change_of_x0_over_its_noise() -> None:
    batch = a_batch()
    other = batch.x0.flip(0)
    moved = v_target(other, transferred_noise(batch.x_t, other, ABAR), batch.t)
    kept = v_target(batch.x0, batch.noise, batch.t)
    # x_t = alpha x0 + sigma eps and v = alpha eps - sigma x0 give v = (alpha x_t - x0) / sigma
    torch.testing.assert_close(moved - kept, (batch.x0 - other) / (1.0 - ABAR[:, None]).sqrt())


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("method", METHODS)
def test_no_objective_reads_a_value_back_from_the_device(method: Method, grad: NeighbourGrad) -> None:
    def on_meta(value: object) -> object:  # shapes without values: whatever reads one raises
        if isinstance(value, Tensor):
            return value.to("meta")
        return {key: on_meta(item) for key, item in value.items()} if isinstance(value, dict) else value

    batch = a_batch()
    moved = Batch(**{field.name: on_meta(getattr(batch, field.name)) for field in fields(batch)})  # type: ignore[arg-type]
    loss = make_objective(method, neighbour_grad=grad)(TinyModel().to("meta"), moved)
    assert loss.value.shape == ()
    assert all(part.shape == () for part in loss.parts.values())


def test_conditions_are_joined_key_by_key_and_must_have_the_same_keys() -> None:
    joined = concat_conditions(condition(2, seed=0), condition(3, seed=1))
    torch.testing.assert_close(joined["text"], torch.cat([normal(2, D, seed=0), normal(3, D, seed=1)]))
    with pytest.raises(ValueError, match="differ in their keys"):
        concat_conditions({"text": torch.zeros(1)}, {"pooled": torch.zeros(1)})


def test_a_batch_that_lacks_what_its_method_needs_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Batch\.log_density"):
        make_objective("t2h")(TinyModel(), a_batch(log_density=None))
    with pytest.raises(ValueError, match=r"Batch\.neighbour_psi"):
        make_objective("pogdiff")(TinyModel(), a_batch(neighbour_psi=None))


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PogdiffError, match="vanilla, pogdiff, cbdm, t2h") as caught:
        make_objective("dreambooth")  # type: ignore[arg-type]
    assert caught.value.exit_code is Exit.USAGE
