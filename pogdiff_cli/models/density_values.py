"""The bound of every caption's log density, and how far the posterior draws and the rounding leave it uncertain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.models.text_vae import Bound, Precision, TextVae, log_density
from pogdiff_cli.progress import Track, untracked

LARGE = 50_000  # distinct captions from which products are float32 and no more draws are taken than are needed
TOLERATED = 0.01  # standard error over the spread of the log densities
PILOT = 512  # captions on which errors are measured
REPLICATES = 4  # sets of draws that they are measured with
FEWEST = 8  # draws


@dataclass(frozen=True, kw_only=True, eq=False)
class DensityValues:
    """``log_density`` (n,), and on what it rests.

    A shift that all captions share cancels in every ratio of densities: the errors are what is left without it.
    """

    log_density: NDArray[np.float64]
    samples: int  # posterior draws
    standard_error: float  # of one value, by the choice of the draws
    precision: Precision  # of the matrix products
    rounding_error: float  # root mean square difference from float64 products


def measure_density(
    vae: TextVae,
    embeddings: NDArray[np.floating],
    *,
    seed: int,
    bound: Bound = "elbo",
    samples: int = 64,
    large: int = LARGE,
    track: Track = untracked,
) -> DensityValues:
    """Bound log p of embeddings (n, d), by ``samples`` draws or, for a large set, as few as do.

    IWAE's bias depends on the number of draws: they are never fewer than asked for.
    """
    pilot = np.random.default_rng(seed).permutation(len(embeddings))[:PILOT]
    checked = np.asarray(embeddings[np.sort(pilot)])
    precision: Precision = "float32" if len(embeddings) >= large else "float64"
    if precision == "float32" and bound == "elbo":
        samples = enough_samples(vae, checked, seed=seed, at_most=samples)
    values = log_density(vae, embeddings, seed=seed, bound=bound, samples=samples, precision=precision, track=track)
    return DensityValues(
        log_density=values,
        samples=samples,
        standard_error=standard_error(vae, checked, seed=seed, bound=bound, samples=samples),
        precision=precision,
        rounding_error=0.0 if precision == "float64" else _rounding_error(vae, checked, seed, bound, samples),
    )


def enough_samples(vae: TextVae, embeddings: NDArray[np.floating], *, seed: int, at_most: int) -> int:
    """The fewest draws (FEWEST, doubled) whose standard error is at most TOLERATED of the spread over captions."""
    spread = float(log_density(vae, embeddings, seed=seed, samples=at_most).std())
    samples = FEWEST
    while samples < at_most:
        if standard_error(vae, embeddings, seed=seed, bound="elbo", samples=samples) <= TOLERATED * spread:
            return samples
        samples *= 2
    return at_most


def standard_error(vae: TextVae, embeddings: NDArray[np.floating], *, seed: int, bound: Bound, samples: int) -> float:
    """sqrt(mean_i var_r(v_ri - mean_j v_rj)) of the bounds v_ri of caption i under the r-th set of draws.

    Draws are moved to mean 0 and variance 1, so the spread over single draws would overstate the error: whole
    sets of ``samples`` draws, from seeds of their own, are compared.
    """
    sets = np.stack(
        [
            log_density(vae, embeddings, seed=seed + 1 + replicate, bound=bound, samples=samples)
            for replicate in range(REPLICATES)
        ]
    )
    centred = sets - sets.mean(axis=1, keepdims=True)
    return float(np.sqrt(centred.var(axis=0, ddof=1).mean()))


def _rounding_error(vae: TextVae, embeddings: NDArray[np.floating], seed: int, bound: Bound, samples: int) -> float:
    wide, narrow = (
        log_density(vae, embeddings, seed=seed, bound=bound, samples=samples, precision=precision)
        for precision in ("float64", "float32")
    )
    difference = narrow - wide
    return float((difference - difference.mean()).std()) if len(difference) > 1 else 0.0
