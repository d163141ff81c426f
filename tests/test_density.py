"""The text density: its bound against closed forms, and whether it sees which captions are rare."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.stats import multivariate_normal
from torch import Tensor

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.method import inverse_text_density
from pogdiff_cli.models.density import counts_per_record, default_steps, density_diagnostics, fit_density
from pogdiff_cli.models.density_values import TOLERATED, measure_density, standard_error
from pogdiff_cli.models.text_vae import (
    Bound,
    Posterior,
    TextVae,
    TextVaeSizes,
    log_bound,
    log_density,
    standardised_draws,
)

D = 128
BOUNDS: tuple[Bound, ...] = ("elbo", "iwae")


def clusters(counts: list[int], *, noise: float, seed: int, d: int = D) -> NDArray[np.float32]:
    """One centre an identity and ``counts`` captions about it, identity by identity."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(counts), d))
    identities = np.repeat(np.arange(len(counts)), counts)
    return (centres[identities] + noise * rng.normal(size=(len(identities), d))).astype(np.float32)


def counts_of(counts: list[int]) -> NDArray[np.int64]:
    return counts_per_record(np.repeat(np.arange(len(counts)), counts))


class LinearGaussian:
    """y = W z + noise with orthogonal columns: log p(y) and the posterior are known in closed form."""

    def __init__(self, *, variance: float) -> None:
        rng = np.random.default_rng(0)
        q, _ = np.linalg.qr(rng.normal(size=(5, 2)))
        self.w = q * np.array([2.0, 0.5])
        self.variance = variance
        self.y = rng.normal(size=(7, 5))
        precision = np.eye(2) + self.w.T @ self.w / variance  # diagonal
        self.posterior_variance = 1.0 / np.diag(precision)
        self.posterior_mean = self.y @ self.w / variance * self.posterior_variance

    def log_p(self) -> NDArray[np.float64]:
        covariance = self.w @ self.w.T + self.variance * np.eye(5)
        return np.asarray(multivariate_normal(np.zeros(5), covariance).logpdf(self.y))

    def bound(
        self, mean: NDArray[np.float64], variance: NDArray[np.float64], kind: Bound, samples: int = 64
    ) -> NDArray[np.float64]:
        w = torch.from_numpy(self.w)
        q = Posterior(
            mean=torch.from_numpy(mean), log_variance=torch.from_numpy(np.log(variance)).expand(len(mean), -1)
        )

        def decode(z: Tensor) -> Tensor:
            return z @ w.T

        return log_bound(
            torch.from_numpy(self.y),
            q,
            decode,
            decoder_variance=self.variance,
            draws=standardised_draws(samples, 2, seed=1),
            bound=kind,
        ).numpy()


@pytest.mark.parametrize("kind", BOUNDS)
def test_bound_under_the_true_posterior_is_the_marginal_likelihood(kind: Bound) -> None:
    model = LinearGaussian(variance=0.7)
    bound = model.bound(model.posterior_mean, model.posterior_variance, kind)
    np.testing.assert_allclose(bound, model.log_p(), rtol=1e-12)


def test_elbo_under_another_posterior_falls_short_by_the_divergence() -> None:
    model = LinearGaussian(variance=0.7)
    mean, variance = model.posterior_mean + 0.3, model.posterior_variance * np.array([1.7, 0.6])
    ratio = variance / model.posterior_variance
    kl = 0.5 * (ratio - 1.0 - np.log(ratio) + 0.3**2 / model.posterior_variance).sum()
    short = model.log_p() - model.bound(mean, variance, "elbo")
    np.testing.assert_allclose(short, np.full(7, kl), rtol=1e-10)


def test_iwae_lies_between_the_elbo_and_the_marginal_likelihood() -> None:
    model = LinearGaussian(variance=0.7)
    mean, variance = model.posterior_mean + 0.3, model.posterior_variance * 1.5
    elbo, iwae = (model.bound(mean, variance, kind, samples=4096) for kind in BOUNDS)
    assert (iwae > elbo + 0.05).all()
    np.testing.assert_allclose(iwae, model.log_p(), atol=0.02)  # 4096 draws, a posterior of nearly the right shape


def test_iwae_is_at_least_the_elbo_for_every_caption_of_a_network() -> None:
    torch.manual_seed(0)
    vae = TextVae(TextVaeSizes(embedding_dim=8, latent_dim=3, hidden_dim=16, decoder_variance=0.5))
    y = np.random.default_rng(0).normal(size=(40, 8))
    assert (log_density(vae, y, seed=0, bound="iwae") >= log_density(vae, y, seed=0)).all()


def test_training_loss_is_the_negative_of_the_bound_in_expectation() -> None:
    torch.manual_seed(0)
    vae = TextVae(TextVaeSizes(embedding_dim=8, latent_dim=3, hidden_dim=16)).double()
    y, draws = torch.randn(5, 8, dtype=torch.float64), standardised_draws(50, 3, seed=2)
    bound = log_bound(y, vae.posterior(y), vae.decoder, decoder_variance=3.0, draws=draws)
    losses = torch.stack([vae.negative_elbo(y, draw.expand(5, 3)) for draw in draws]).mean(0)
    torch.testing.assert_close(-losses, bound, rtol=1e-12, atol=1e-12)


def test_draws_have_mean_zero_and_variance_one_and_come_from_the_seed() -> None:
    draws = standardised_draws(10, 4, seed=3)
    torch.testing.assert_close(draws.mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(draws.square().mean(0), torch.ones(4, dtype=torch.float64))
    assert torch.equal(draws, standardised_draws(10, 4, seed=3))
    assert not torch.equal(draws, standardised_draws(10, 4, seed=4))
    with pytest.raises(PogdiffError, match="1 posterior draws"):
        standardised_draws(1, 4, seed=3)


def test_thirty_captions_against_two_give_the_few_four_to_fifteen_times_the_weight() -> None:
    layout = [30] * 5 + [2] * 5
    fit = fit_density(clusters(layout, noise=0.3, seed=1), seed=0)
    counts = counts_of(layout)
    found = density_diagnostics(fit.log_density, counts, counts <= 2)
    assert found.auroc is not None
    assert found.ratio is not None
    assert found.auroc > 0.98
    assert 4.0 < found.ratio < 15.0
    assert found.warning is None


def test_eight_captions_against_two_are_told_apart() -> None:
    layout = [8] * 10 + [2] * 10
    fit = fit_density(clusters(layout, noise=0.3, seed=2, d=384), seed=0)
    counts = counts_of(layout)
    found = density_diagnostics(fit.log_density, counts, counts <= 2)
    assert found.auroc is not None
    assert found.auroc > 0.9
    assert found.warning is None


def test_copies_of_one_caption_raise_its_density_and_share_one_value() -> None:
    layout = [30, 30, 2, 2]
    value = fit_density(clusters(layout, noise=0.0, seed=3), seed=0).log_density
    many, few = value[:60], value[60:]
    assert many.min() > few.max()
    for start, stop in ((0, 30), (30, 60), (60, 62), (62, 64)):
        assert np.ptp(value[start:stop]) < 1e-9


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone() -> None:
    y = clusters([3, 2], noise=0.3, seed=4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = fit_density(y, seed=0, steps=20)
    assert torch.equal(torch.rand(3), expected)
    again, other = fit_density(y, seed=0, steps=20), fit_density(y, seed=1, steps=20)
    np.testing.assert_array_equal(first.log_density, again.log_density)
    np.testing.assert_array_equal(first.loss_curve, again.loss_curve)
    assert not np.array_equal(first.log_density, other.log_density)


def test_training_lowers_the_loss() -> None:
    curve = fit_density(clusters([20, 20], noise=0.1, seed=5), seed=0, steps=200).loss_curve
    assert len(curve) == 200
    assert curve[-20:].mean() < curve[:20].mean() - 10.0


def test_a_memory_mapped_array_gives_what_the_array_in_memory_gives(tmp_path: Path) -> None:
    y = clusters([6, 2], noise=0.3, seed=6)
    np.save(tmp_path / "embeddings.npy", y)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(
        fit_density(mapped, seed=0, steps=10).log_density, fit_density(y, seed=0, steps=10).log_density
    )


def test_density_does_not_depend_on_the_scale_and_origin_of_the_embeddings() -> None:
    y = clusters([6, 2], noise=0.3, seed=7).astype(np.float64)
    here, there = (fit_density(values, seed=0, steps=10).log_density for values in (y, 40.0 * y + 3.0))
    np.testing.assert_allclose(here, there, rtol=1e-4)


def test_a_dimension_that_does_not_vary_changes_the_density_by_a_constant_only() -> None:
    y = np.random.default_rng(8).normal(size=(12, 4))
    vae_input = np.concatenate([y, np.full((12, 1), 0.1) + 1e-9 * y[:, :1]], axis=1)
    fit = fit_density(vae_input, seed=0, steps=5)
    scaled = fit.vae.standardise(torch.from_numpy(vae_input)).numpy()
    np.testing.assert_allclose(scaled[:, :4].std(axis=0), 1.0, rtol=1e-5)
    assert np.abs(scaled[:, 4]).max() < 1e-4


def test_four_captions_and_identical_captions_have_a_density() -> None:
    assert np.isfinite(fit_density(clusters([2, 2], noise=0.3, seed=9), seed=0, steps=20).log_density).all()
    same = fit_density(np.ones((4, 8)), seed=0, steps=5).log_density
    np.testing.assert_allclose(inverse_text_density(same), 1.0, rtol=1e-9)


def test_the_chunk_a_caption_is_measured_in_does_not_change_its_density() -> None:
    y = clusters([6, 3], noise=0.3, seed=10)
    vae = fit_density(y, seed=0, steps=10).vae
    np.testing.assert_allclose(
        log_density(vae, y, seed=0, chunk=2), log_density(vae, y, seed=0), rtol=1e-12, atol=1e-12
    )


def test_repeated_captions_given_once_with_their_rows_have_the_density_of_the_repeated_rows() -> None:
    distinct = clusters([3, 2, 1], noise=0.3, seed=13)
    rows = np.array([0, 0, 1, 2, 3, 3, 3, 3, 4, 5, 0, 3])
    once, repeated = fit_density(distinct, rows=rows, seed=0, steps=30), fit_density(distinct[rows], seed=0, steps=30)
    np.testing.assert_allclose(once.log_density, repeated.log_density, rtol=1e-6)
    assert len(once.measured.log_density) == 6
    np.testing.assert_array_equal(once.log_density, once.measured.log_density[rows])
    without_multiplicity = fit_density(distinct, seed=0, steps=30)
    assert not np.allclose(once.measured.log_density, without_multiplicity.log_density, rtol=1e-4)


def test_the_standard_error_shrinks_with_the_number_of_draws() -> None:
    y = clusters([20, 10], noise=0.3, seed=14)
    vae = fit_density(y, seed=0, steps=60).vae
    few, many = (standard_error(vae, y, seed=0, bound="elbo", samples=samples) for samples in (8, 128))
    assert 0 < many < few / 2  # 1 / sqrt(16), and some for chance


def test_the_standard_error_is_the_spread_over_seeds_of_the_draws() -> None:
    y = clusters([20, 10], noise=0.3, seed=15)
    vae = fit_density(y, seed=0, steps=60).vae
    sets = np.stack([log_density(vae, y, seed=seed, samples=8) for seed in range(100, 140)])
    spread = np.sqrt((sets - sets.mean(1, keepdims=True)).var(axis=0, ddof=1).mean())
    assert standard_error(vae, y, seed=0, bound="elbo", samples=8) == pytest.approx(spread, rel=0.4)


def test_draws_that_the_decoder_does_not_see_cause_no_error() -> None:
    torch.manual_seed(0)
    vae = TextVae(TextVaeSizes(embedding_dim=8, latent_dim=3, hidden_dim=16))
    vae.decoder[-1].weight.data.zero_()
    y = np.random.default_rng(0).normal(size=(20, 8))
    assert standard_error(vae, y, seed=0, bound="elbo", samples=8) < 1e-12


def test_a_large_set_takes_as_many_draws_as_it_needs_and_stays_within_its_errors() -> None:
    y = clusters([30, 20, 2, 2], noise=0.3, seed=16)
    vae = fit_density(y, seed=0).vae
    full, quick = measure_density(vae, y, seed=0), measure_density(vae, y, seed=0, large=10)
    assert (full.samples, full.precision, full.rounding_error) == (64, "float64", 0.0)
    assert quick.precision == "float32"
    assert quick.samples <= 64
    assert 0 < quick.rounding_error < 1e-4 * quick.log_density.std()
    assert quick.samples == 64 or quick.standard_error <= 1.5 * TOLERATED * full.log_density.std()
    difference = quick.log_density - full.log_density
    allowed = math.hypot(quick.standard_error, full.standard_error) + quick.rounding_error
    assert (difference - difference.mean()).std() < 2.0 * allowed


def test_the_bound_whose_bias_depends_on_the_draws_never_takes_fewer() -> None:
    y = clusters([20, 10], noise=0.3, seed=17)
    vae = fit_density(y, seed=0, steps=20).vae
    assert measure_density(vae, y, seed=0, bound="iwae", samples=32, large=10).samples == 32


@pytest.mark.parametrize("bad", [np.ones((1, 4)), np.ones(4)])
def test_too_few_captions_are_refused(bad: NDArray[np.float64]) -> None:
    with pytest.raises(PogdiffError, match="2 captions or more") as caught:
        fit_density(bad, seed=0)
    assert caught.value.exit_code is Exit.DATA


def test_embeddings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(PogdiffError, match="not finite") as caught:
        fit_density(np.array([[0.0, np.inf], [1.0, 2.0]]), seed=0)
    assert caught.value.exit_code is Exit.NON_FINITE


def test_a_fit_that_diverges_says_at_which_step() -> None:
    with pytest.raises(PogdiffError, match="diverged at step") as caught:
        fit_density(clusters([4, 4], noise=0.3, seed=11), seed=0, steps=60, learning_rate=1e30)
    assert caught.value.exit_code is Exit.NON_FINITE


def test_every_caption_of_a_large_set_is_seen_about_twice() -> None:
    assert default_steps(32) == 400
    assert default_steps(1_000_000) * 1024 >= 2_000_000


def test_a_saved_density_measures_the_same_bits(tmp_path: Path) -> None:
    y = clusters([4, 2], noise=0.3, seed=12)
    fit = fit_density(y, seed=0, steps=10, latent_dim=3, hidden_dim=8)
    fit.vae.save(tmp_path / "vae.safetensors")
    loaded = TextVae.load(tmp_path / "vae.safetensors")
    assert loaded.sizes == TextVaeSizes(embedding_dim=D, latent_dim=3, hidden_dim=8)
    np.testing.assert_array_equal(log_density(loaded, y, seed=0), fit.log_density)


def test_a_missing_density_and_a_damaged_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PogdiffError, match="no text density") as missing:
        TextVae.load(tmp_path / "vae.safetensors")
    assert missing.value.exit_code is Exit.MISSING
    (tmp_path / "vae.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(PogdiffError, match="not a text density") as damaged:
        TextVae.load(tmp_path / "vae.safetensors")
    assert damaged.value.exit_code is Exit.DATA
    sizes = json.dumps({"embedding_dim": 4})
    save_file({"encoder.0.weight": torch.zeros(2, 2)}, tmp_path / "vae.safetensors", metadata={"text_vae": sizes})
    with pytest.raises(PogdiffError, match="not a text density"):
        TextVae.load(tmp_path / "vae.safetensors")


def test_counts_belong_to_the_identity_of_each_record() -> None:
    np.testing.assert_array_equal(counts_per_record(np.array(["b", "a", "b", "c", "b"])), [3, 1, 3, 1, 3])


def test_diagnostics_of_a_density_that_orders_by_count_are_perfect() -> None:
    counts = np.array([30] * 4 + [5] * 2 + [2])
    found = density_diagnostics(np.log(counts), counts, counts <= 2)
    assert cast("float", found.spearman) == pytest.approx(1.0)
    assert found.auroc == 1.0


def test_auroc_is_the_share_of_pairs_in_which_the_few_shot_record_is_rarer() -> None:
    value, few = np.array([0.0, 2.0, 1.0, 2.0, 3.0]), np.array([True, True, False, False, False])
    # 0 is below all three; 2 is below 3, level with 2, above 1: (3 + 1 + 1 / 2) / 6
    found = density_diagnostics(value, np.array([2, 2, 3, 3, 3]), few)
    assert found.auroc == pytest.approx(4.5 / 6)


def test_diagnostics_warn_when_the_tail_is_not_seen_and_when_the_weights_are_flat() -> None:
    counts = np.array([8] * 8 + [2, 2])
    reversed_order = density_diagnostics(-np.log(counts) + np.arange(10) * 1e-3, counts, counts <= 2)
    assert reversed_order.warning is not None
    assert "does not see the tail" in reversed_order.warning
    seen = np.log(counts) + np.arange(10) * 1e-3
    flat = density_diagnostics(seen, counts, counts <= 2, inverse_density=inverse_text_density(seen, temperature=0.0))
    assert flat.ratio == 1.0
    assert flat.warning is not None
    assert "nearly flat" in flat.warning


def test_diagnostics_of_a_balanced_set_compare_nothing() -> None:
    found = density_diagnostics(np.arange(4.0), np.full(4, 2), np.full(4, True))
    assert (found.spearman, found.auroc, found.ratio, found.warning) == (None, None, None, None)
    assert not math.isnan(inverse_text_density(np.arange(4.0)).sum())
