"""Fits the text density of Eqs. 10 and 11 to a training set, and says whether it sees the tail."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.method import inverse_text_density
from pogdiff_cli.models.density_values import DensityValues, measure_density
from pogdiff_cli.models.parallel import on_one_core
from pogdiff_cli.models.text_vae import DECODER_VARIANCE, Bound, TextVae, TextVaeSizes
from pogdiff_cli.progress import Track, untracked

STEPS = (400, 5000)  # at least, at most; between them, PASSES over the captions
PASSES = 2
BATCH_SIZE = (128, 1024)  # up to LARGE_SET captions, and beyond
LARGE_SET = 10_000
CHUNK = 16_384  # rows of a memory-mapped array that are read at once
SEES_TAIL = 0.75  # AUROC below which the order of densities says little about who is rare
FLAT = 1.5  # ratio below which the weights hardly tell minority from majority


@dataclass(frozen=True, kw_only=True, eq=False)
class DensityFit:
    """``log_density`` (n,): a lower bound of log p(y). ``loss_curve`` (steps,): -ELBO of each mini-batch.

    ``measured``: the same for each distinct embedding, with the number of draws and the errors.
    """

    log_density: NDArray[np.float64]
    vae: TextVae
    loss_curve: NDArray[np.float64]
    measured: DensityValues


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Does the density see the tail? None where the set has nothing to compare."""

    spearman: float | None  # of log-density with log-count, over records
    auroc: float | None  # P(density of a few-shot record < density of another record)
    ratio: float | None  # mean inverse density of few-shot records over that of the others
    warning: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Standardisation:
    shift: NDArray[np.float64]
    spread: NDArray[np.float64]


def fit_density(
    embeddings: NDArray[np.floating],
    *,
    seed: int,
    rows: NDArray[np.integer] | None = None,
    latent_dim: int = 16,
    hidden_dim: int = 256,
    decoder_variance: float = DECODER_VARIANCE,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    bound: Bound = "elbo",
    samples: int = 64,
    device: str = "cpu",
    track: Track = untracked,
) -> DensityFit:
    """Train the VAE on the embeddings of all n captions, repeats included; bound log p of each.

    ``embeddings`` (m, d) may be memory-mapped: they are read in chunks and mini-batches. ``rows`` (n,) says
    which of them each caption has, so that a repeated one is stored and measured once and trained on as often
    as it occurs; None: caption i has embedding i. The same seed on the same machine gives the same bits.
    ``steps`` and ``batch_size`` follow n where None.
    """
    rows = np.arange(len(embeddings)) if rows is None else rows
    standardisation = _standardisation(embeddings, rows)
    sizes = TextVaeSizes(
        embedding_dim=embeddings.shape[1],
        latent_dim=latent_dim,
        hidden_dim=hidden_dim,
        decoder_variance=decoder_variance,
    )
    with torch.random.fork_rng(devices=[]):  # layers initialise from the global generator: leave it as it was
        torch.manual_seed(seed)
        vae = TextVae(sizes)
    vae.shift.copy_(torch.from_numpy(standardisation.shift))
    vae.spread.copy_(torch.from_numpy(standardisation.spread))
    vae.to(device)
    with on_one_core():  # and so the same bits on any number of them
        loss_curve = _train(
            vae,
            embeddings,
            rows,
            seed=seed,
            steps=steps or default_steps(len(rows)),
            batch_size=batch_size or _default_batch_size(len(rows)),
            learning_rate=learning_rate,
            track=track,
        )
    if not np.isfinite(loss_curve).all():
        raise PogdiffError(
            f"The text VAE diverged at step {int(np.argmin(np.isfinite(loss_curve)))}.",
            hint="Lower density.learning_rate.",
            exit_code=Exit.NON_FINITE,
        )
    measured = measure_density(vae, embeddings, seed=seed, bound=bound, samples=samples, track=track)
    return DensityFit(log_density=measured.log_density[rows], vae=vae, loss_curve=loss_curve, measured=measured)


def default_steps(n: int) -> int:
    """PASSES over n captions, within STEPS."""
    return min(max(STEPS[0], math.ceil(PASSES * n / _default_batch_size(n))), STEPS[1])


def _default_batch_size(n: int) -> int:
    return BATCH_SIZE[0] if n <= LARGE_SET else BATCH_SIZE[1]


def _chunks(embeddings: NDArray[np.floating]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    for start in range(0, len(embeddings), CHUNK):
        part = slice(start, start + CHUNK)
        yield part, np.asarray(embeddings[part], dtype=np.float64)


def _standardisation(embeddings: NDArray[np.floating], rows: NDArray[np.integer]) -> _Standardisation:
    """Mean and deviation of each dimension over the captions, in two passes of float64."""
    if embeddings.ndim != 2 or len(rows) < 2:
        raise PogdiffError(
            f"A text density needs 2 captions or more; these embeddings have shape {embeddings.shape}.",
            hint="Add images to the training split.",
            exit_code=Exit.DATA,
        )
    share = np.bincount(rows, minlength=len(embeddings)) / len(rows)  # of each distinct embedding
    shift = sum((share[part] @ chunk for part, chunk in _chunks(embeddings)), np.zeros(embeddings.shape[1]))
    if not np.isfinite(shift).all():
        raise PogdiffError(
            "Some text embeddings are not finite.",
            hint="Embed the captions again, in float32.",
            exit_code=Exit.NON_FINITE,
        )
    variances = (share[part] @ np.square(chunk - shift) for part, chunk in _chunks(embeddings))
    spread = np.sqrt(sum(variances, np.zeros_like(shift)))
    # a dimension that hardly varies is rounding, not text: its own deviation would blow it up
    floor = max(1e-3 * float(np.sqrt(np.square(spread).mean())), 1e-6 * float(np.abs(shift).max()))
    return _Standardisation(shift=shift, spread=np.where(spread > floor, spread, max(floor, 1e-12)))


def _train(
    vae: TextVae,
    embeddings: NDArray[np.floating],
    rows: NDArray[np.integer],
    *,
    seed: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    track: Track,
) -> NDArray[np.float64]:
    device = vae.shift.device
    rows_rng = np.random.default_rng(np.random.Philox(key=seed))
    noise_rng = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(vae.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    losses = torch.empty(steps, device=device)
    for step in track(range(steps), "Fitting the text density", steps):
        drawn = np.sort(rows_rng.integers(len(rows), size=batch_size))  # sorted: one sweep over the file
        batch = np.asarray(embeddings[rows[drawn]], dtype=np.float64)
        y = vae.standardise(torch.from_numpy(batch).to(device))
        draws = torch.randn(batch_size, vae.sizes.latent_dim, generator=noise_rng).to(device)
        loss = vae.negative_elbo(y, draws).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        losses[step] = loss.detach()
    return losses.cpu().double().numpy()


def counts_per_record(identities: NDArray[np.generic]) -> NDArray[np.int64]:
    """How many records share each record's identity. codes or names (n,) -> (n,)."""
    _, inverse, counts = np.unique(identities, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse.reshape(-1)], dtype=np.int64)


def density_diagnostics(
    log_density: NDArray[np.floating],
    counts: NDArray[np.integer],
    few: NDArray[np.bool_],
    *,
    inverse_density: NDArray[np.floating] | None = None,
) -> Diagnostics:
    """Compare the density with the counts (n,) of each record's identity; few (n,) is the tail's mask.

    ``inverse_density`` (n,) are the weights that training will use; the default scale's where None.
    """
    values = np.asarray(log_density, dtype=np.float64)
    weight = inverse_text_density(values) if inverse_density is None else np.asarray(inverse_density)
    varies = len(np.unique(counts)) > 1 and len(np.unique(values)) > 1
    spearman = float(spearmanr(values, np.log(counts)).statistic) if varies else None
    auroc = ratio = None
    if 0 < int(few.sum()) < len(few):
        auroc = _auroc(values[few], values[~few])
        ratio = float(weight[few].mean() / weight[~few].mean())
    return Diagnostics(spearman=spearman, auroc=auroc, ratio=ratio, warning=_warning(auroc, ratio))


def _auroc(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    """P(low < high) + P(low = high) / 2, by the rank sum."""
    ranks = rankdata(np.concatenate([low, high]))
    rank_sum = float(ranks[len(low) :].sum()) - len(high) * (len(high) + 1) / 2
    return rank_sum / (len(low) * len(high))


def _warning(auroc: float | None, ratio: float | None) -> str | None:
    if auroc is None or ratio is None:
        return None
    if auroc < SEES_TAIL:
        return (
            "The text density does not see the tail: a few-shot caption has the lower density in "
            f"{auroc:.0%} of pairs (50% is chance). "
            'Long captions hide the identity; try density.text "prompt".'
        )
    if ratio < FLAT:
        return (
            f"The weights are nearly flat: few-shot captions weigh {ratio:.2f} times the others. "
            "Raise density.temperature."
        )
    return None
