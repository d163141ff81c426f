"""The formulas of the paper against mathematics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.method import (
    cbdm_regulariser,
    image_similarity,
    inverse_text_density,
    log_image_similarity,
    mean_square,
    min_snr_weight,
    neighbour_weights,
    oriented_transfer,
    pog_loss,
    product_of_gaussians,
    psi,
    roulette,
    transferred_noise,
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_product_of_gaussians_matches_numeric_integration() -> None:
    mu1, l1, mu2, l2 = -0.7, 2.5, 1.3, 0.8
    x = np.linspace(-12.0, 12.0, 40_001)
    density = np.exp(-0.5 * l1 * (x - mu1) ** 2 - 0.5 * l2 * (x - mu2) ** 2)
    density /= np.trapezoid(density, x)
    mean = np.trapezoid(x * density, x)
    variance = np.trapezoid((x - mean) ** 2 * density, x)
    product = product_of_gaussians(*(torch.tensor(v, dtype=torch.float64) for v in (mu1, l1, mu2, l2)))
    assert product.mean.item() == pytest.approx(mean, abs=1e-10)
    assert 1.0 / product.precision.item() == pytest.approx(variance, abs=1e-10)


def test_pair_of_squares_bounds_the_distance_to_the_product_by_exactly_the_constant_of_lemma_a1() -> None:
    mu, mu_t, mu_n = (normal(1000, seed=i) for i in range(3))
    lambda_t, lambda_n = normal(1000, seed=3).exp(), normal(1000, seed=4).exp()
    pog = product_of_gaussians(mu_t, lambda_t, mu_n, lambda_n)
    pair = 0.5 * lambda_t * (mu - mu_t).square() + 0.5 * lambda_n * (mu - mu_n).square()
    to_product = 0.5 * pog.precision * (mu - pog.mean).square()
    constant = lambda_t * lambda_n * (mu_t - mu_n).square() / (2.0 * pog.precision)
    assert bool((pair >= to_product).all())
    torch.testing.assert_close(pair - to_product, constant, rtol=1e-9, atol=1e-9)


def test_neighbour_weights_are_shares_of_the_positive_similarities() -> None:
    weights = neighbour_weights(np.array([[0.9, 0.6, -0.3], [0.2, 0.2, 0.6]]))
    np.testing.assert_allclose(weights, [[0.6, 0.4, 0.0], [0.2, 0.2, 0.6]], atol=1e-15)


def test_neighbour_weights_are_uniform_where_nothing_is_similar() -> None:
    np.testing.assert_array_equal(neighbour_weights(np.array([[0.0, -0.1, -1.0, 0.0]])), [[0.25] * 4])


def test_image_similarity_is_the_example_of_footnote_3() -> None:
    value = image_similarity(np.array([0.4, 0.4]), np.array([True, False]), a1=1.0, a2=1.0)
    np.testing.assert_allclose(value, [0.4, 0.16], rtol=1e-15)


def test_image_similarity_of_opposed_images_is_zero_under_a_fractional_power() -> None:
    s, same = np.array([-0.4, 0.0]), np.array([False, True])
    np.testing.assert_array_equal(image_similarity(s, same, a1=0.3, a2=0.2), [0.0, 0.0])
    np.testing.assert_array_equal(log_image_similarity(s, same, a1=0.0, a2=0.0), [-np.inf, -np.inf])


def test_literal_inverse_density_is_eq_11_to_the_letter() -> None:
    logp = np.array([-1.5, 0.0, 2.0])
    weight = inverse_text_density(logp, a3=4.0, scale="literal", temperature=7.0, mean=9.0)
    np.testing.assert_allclose(weight, 1.0 / (4.0 * np.exp(logp)), rtol=1e-14)


@pytest.mark.parametrize("level", [-900.0, -400.0, 900.0, -5.0])
def test_literal_inverse_density_refuses_what_no_weight_can_be_made_of(level: float) -> None:
    with pytest.raises(PogdiffError, match="to the letter") as caught:
        inverse_text_density(np.array([level, level - 1.0]), scale="literal")
    assert caught.value.exit_code is Exit.FAILURE
    assert "standardised" in str(caught.value)


def test_the_a3_that_a_refusal_names_is_accepted() -> None:
    logp = np.array([-49.0, -50.0, -51.0])
    with pytest.raises(PogdiffError) as caught:
        inverse_text_density(logp, scale="literal")
    exponent = float(str(caught.value.hint).split("exp(")[1].split(")")[0])
    weight = inverse_text_density(logp, a3=math.exp(exponent), scale="literal")
    np.testing.assert_allclose(weight, np.exp([-1.0, 0.0, 1.0]), rtol=1e-9)


def test_inverse_density_refuses_a_density_that_is_not_finite() -> None:
    with pytest.raises(PogdiffError, match="1 of 2") as caught:
        inverse_text_density(np.array([0.0, np.nan]))
    assert caught.value.exit_code is Exit.NON_FINITE


def test_inverse_density_refuses_to_divide_by_zero() -> None:
    with pytest.raises(PogdiffError, match="a3 is 0"):
        inverse_text_density(np.array([0.0, 1.0]), a3=0.0)


def test_standardised_inverse_density_ignores_the_units_and_the_origin_of_the_bound() -> None:
    logp = np.random.default_rng(0).normal(size=50)
    here, there = inverse_text_density(logp), inverse_text_density(1e4 * logp - 5e5)
    np.testing.assert_allclose(here, there, rtol=1e-9)


def test_standardised_inverse_density_has_the_mean_asked_for_and_a3_divides_it() -> None:
    logp = np.random.default_rng(1).normal(size=50)
    assert inverse_text_density(logp, mean=5.0).mean() == pytest.approx(5.0, rel=1e-12)
    assert inverse_text_density(logp, mean=5.0, a3=2.0).mean() == pytest.approx(2.5, rel=1e-12)


def test_rare_caption_outweighs_common_one_and_a_higher_temperature_widens_the_gap() -> None:
    logp = np.array([0.0, 0.1, -0.1, 0.2, -0.3])
    ratios = [(w := inverse_text_density(logp, temperature=temperature))[4] / w[3] for temperature in (0.0, 0.5, 1.0)]
    assert ratios[0] == 1.0
    assert 1.0 < ratios[1] < ratios[2]


def test_standardised_inverse_density_differs_by_the_clip_squared_at_most() -> None:
    weight = inverse_text_density(np.array([-1e3, 0.0, 0.1, -0.1, 0.2, 1e3]))
    assert weight.max() / weight.min() == pytest.approx(100.0, rel=1e-12)


def test_captions_of_one_density_weigh_the_same_even_if_rounding_tells_them_apart() -> None:
    np.testing.assert_allclose(inverse_text_density(np.array([-700.0, -700.0 - 1e-11, -700.0])), 1.0)


def test_spread_survives_when_one_caption_fills_most_of_the_set() -> None:
    # the median absolute deviation is 0 here; by the deviation the rare caption lies 4.2 below: clipped
    weight = inverse_text_density(np.array([0.0] * 18 + [-1.0]))
    assert weight[-1] / weight[0] == pytest.approx(10.0, rel=1e-12)


def test_psi_is_the_product_of_its_terms_and_a_term_left_out_is_one() -> None:
    s, same = np.array([[0.4, 0.5], [-0.1, 0.8]]), np.array([[True, False], [True, True]])
    inverse = np.array([[2.0], [3.0]])
    np.testing.assert_allclose(psi(s, same, inverse), [[0.8, 0.5], [0.0, 2.4]], rtol=1e-14)
    np.testing.assert_allclose(psi(s, same, inverse, terms=["img_sim"]), [[0.4, 0.25], [0.0, 0.8]], rtol=1e-14)
    np.testing.assert_allclose(psi(s, same, inverse, terms=["inv_density"]), [[2.0, 2.0], [3.0, 3.0]], rtol=1e-14)
    np.testing.assert_array_equal(psi(s, same, inverse, terms=[]), np.ones((2, 2)))


def test_roulette_expects_psi_for_small_and_large_psi() -> None:
    value = np.array([0.0, 1e-6, 0.3, 1.0, 7.0])
    drawn = roulette(value, c=1.0)
    np.testing.assert_allclose(drawn.probability * drawn.weight, value, rtol=1e-15)
    np.testing.assert_array_equal(drawn.probability, [0.0, 1e-6, 0.3, 1.0, 1.0])


def test_roulette_refuses_a_c_of_zero() -> None:
    with pytest.raises(PogdiffError, match="c is 0"):
        roulette(np.ones(1), c=0.0)


def test_pog_loss_is_regression_to_the_mean_of_the_product_up_to_a_constant() -> None:
    h, g, target = (normal(6, 3, 4, seed=i) for i in range(3))
    weight, w = normal(6, seed=3).exp(), normal(6, seed=4).exp()
    terms = pog_loss(h, g, target, weight, w)
    one = torch.ones(6, 1, 1, dtype=torch.float64)
    pog = product_of_gaussians(target, one, g, weight.reshape(6, 1, 1))
    square = (1.0 + weight) * mean_square(h, pog.mean) + weight / (1.0 + weight) * mean_square(target, g)
    torch.testing.assert_close(terms.total, w * square, rtol=1e-12, atol=1e-12)


def test_cbdm_pulls_the_first_branch_by_one_and_the_second_by_gamma() -> None:
    h, g = normal(2, 5, seed=0).requires_grad_(), normal(2, 5, seed=1).requires_grad_()
    t = torch.tensor([250, 1000])
    value = cbdm_regulariser(h, g, t, 1000, tau=2.0, gamma=0.25)
    torch.testing.assert_close(value, t / 1000 * 2.0 * 1.25 * mean_square(h, g))
    grad_h, grad_g = torch.autograd.grad(value.sum(), (h, g))
    expected = (t / 1000 * 2.0)[:, None] * 2.0 * (h - g) / 5
    torch.testing.assert_close(grad_h, expected)
    torch.testing.assert_close(grad_g, -0.25 * expected)


def test_half_precision_errors_are_squared_in_single_precision() -> None:
    a = torch.full((1, 4), 300.0, dtype=torch.float16)  # 300 squared is beyond float16
    assert mean_square(a, torch.zeros_like(a)).item() == 90_000.0


def test_min_snr_weighs_the_same_error_of_x0_the_same_in_every_parametrisation() -> None:
    sigma = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for gamma in (1.0, 5.0):
        alpha = (1.0 - sigma.square()).sqrt()  # variance preserving
        snr = (alpha / sigma).square()
        wanted = snr.clamp(max=gamma)  # times |d_x0|^2
        epsilon_per_x0, v_per_x0 = (alpha / sigma).square(), 1.0 / sigma.square()  # d_x0 = -sigma d_v
        torch.testing.assert_close(min_snr_weight(snr, gamma, "epsilon") * epsilon_per_x0, wanted)
        torch.testing.assert_close(min_snr_weight(snr, gamma, "v_prediction") * v_per_x0, wanted)
        flow_snr = ((1.0 - sigma) / sigma).square()  # rectified flow: d_x0 = -sigma d_v
        flow = min_snr_weight(flow_snr, gamma, "flow") / sigma.square()
        torch.testing.assert_close(flow, flow_snr.clamp(max=gamma))


def test_min_snr_is_finite_on_a_schedule_that_ends_in_pure_noise() -> None:
    zero = torch.zeros(1)
    assert [min_snr_weight(zero, 5.0, p).item() for p in ("epsilon", "v_prediction", "flow")] == [
        1.0,
        0.0,
        0.0,
    ]


def noised(x0: Tensor, abar: Tensor, *, seed: int) -> Tensor:
    abar = abar.reshape(-1, *[1] * (x0.ndim - 1))
    return abar.sqrt() * x0 + (1.0 - abar).sqrt() * normal(*x0.shape, seed=seed)


def test_transfer_stays_where_it_is_close_to_the_data() -> None:
    x0 = normal(16, 4, 8, 8, seed=0)
    abar = torch.full((16,), 0.999, dtype=torch.float64)
    u = torch.linspace(0.0, 0.999, 16)
    transfer = oriented_transfer(noised(x0, abar, seed=1), x0, abar, normal(16, seed=2), u)
    torch.testing.assert_close(transfer.index, torch.arange(16))
    assert transfer.moved.sum().item() == 0.0


def test_transfer_reaches_every_record_of_higher_density_and_none_of_lower_in_pure_noise() -> None:
    b = 4
    x0 = 1e-3 * normal(b, 3, seed=0)
    abar = torch.full((b,), 1e-6, dtype=torch.float64)
    x_t = noised(x0, abar, seed=1)
    density = torch.tensor([0.0, 1.0, 2.0, 3.0])
    reached = {i: set[int]() for i in range(b)}
    for u in (0.1, 0.35, 0.6, 0.85):  # all weights are 1/4 here: one draw for each candidate
        transfer = oriented_transfer(x_t, x0, abar, density, torch.full((b,), u))
        for i, j in enumerate(transfer.index.tolist()):
            reached[i].add(j)
    assert reached == {0: {0, 1, 2, 3}, 1: {1, 2, 3}, 2: {2, 3}, 3: {3}}


def test_transfer_draws_by_the_posterior_over_the_candidates() -> None:
    x0 = torch.tensor([[0.0], [1.5]], dtype=torch.float64)
    abar = torch.tensor([0.4, 0.4], dtype=torch.float64)
    x_t = torch.tensor([[0.5], [0.5]], dtype=torch.float64)
    likelihood = torch.exp(-0.5 * (x_t[0] - abar[0].sqrt() * x0[:, 0]).square() / (1.0 - abar[0]))  # q(x_t | x0_j)
    edge = (likelihood[0] / likelihood.sum()).item()
    equal = torch.zeros(2)
    below = oriented_transfer(x_t, x0, abar, equal, torch.full((2,), edge - 1e-9, dtype=torch.float64))
    above = oriented_transfer(x_t, x0, abar, equal, torch.full((2,), edge + 1e-9, dtype=torch.float64))
    assert below.index.tolist() == [0, 0]
    assert above.index.tolist() == [1, 1]


def test_distance_temperature_flattens_the_posterior_over_the_candidates() -> None:
    x0 = torch.tensor([[0.0], [10.0]], dtype=torch.float64)
    abar, equal, u = torch.tensor([0.5, 0.5]), torch.zeros(2), torch.tensor([0.9, 0.1])
    x_t = abar[:, None].sqrt().double() * x0
    assert oriented_transfer(x_t, x0, abar, equal, u).moved.tolist() == [0.0, 0.0]
    assert oriented_transfer(x_t, x0, abar, equal, u, temperature=1e6).moved.tolist() == [1.0, 1.0]


def test_transferred_noise_leads_from_the_other_record_to_the_same_x_t() -> None:
    x0, abar = normal(4, 3, 2, seed=0), torch.tensor([0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    x_t, other = noised(x0, abar, seed=1), x0.flip(0)
    a = abar.reshape(4, 1, 1)
    again = a.sqrt() * other + (1.0 - a).sqrt() * transferred_noise(x_t, other, abar)
    torch.testing.assert_close(again, x_t, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(transferred_noise(x_t, x0, abar), normal(4, 3, 2, seed=1), rtol=1e-12, atol=1e-12)
