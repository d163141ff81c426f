"""The variational autoencoder of Sec. 3.2.3: p(y) of a text embedding through a lower bound of log p(y).

The decoder's variance is fixed, and above the variance 1 of a standardised dimension. With a learnt or a small
variance, synthetic clusters of noisy captions came out reversed: the rare identity had the higher density, the
opposite of what Eq. 10 is for (the likely reason: two captions are told apart more cheaply than thirty). With a
wide one the bound followed the count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.parallel import one_core_each
from pogdiff_cli.progress import Track, untracked

Bound = Literal["elbo", "iwae"]
Precision = Literal["float64", "float32"]

DECODER_VARIANCE = 3.0  # 2 and 3 saw 8 against 2 as well as 30 against 2; 0.1 to 1 and 10 did not in all sets
LOG_VARIANCE_RANGE = (-12.0, 6.0)  # of the posterior: keeps exp() finite in the first steps
METADATA_KEY = "text_vae"


@dataclass(frozen=True, kw_only=True)
class TextVaeSizes:
    """What it takes to build a ``TextVae`` before its weights are read."""

    embedding_dim: int
    latent_dim: int = 16
    hidden_dim: int = 256
    decoder_variance: float = DECODER_VARIANCE


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """q(z | y) = N(mean, exp(log_variance)), each (b, latent_dim)."""

    mean: Tensor
    log_variance: Tensor


class TextVae(nn.Module):
    """MLP encoder and decoder on standardised embeddings; the standardisation is part of the saved state."""

    shift: Tensor
    spread: Tensor

    def __init__(self, sizes: TextVaeSizes) -> None:
        super().__init__()
        self.sizes = sizes
        d, h, k = sizes.embedding_dim, sizes.hidden_dim, sizes.latent_dim
        self.encoder = nn.Sequential(nn.Linear(d, h), nn.SiLU(), nn.Linear(h, h), nn.SiLU(), nn.Linear(h, 2 * k))
        self.decoder = nn.Sequential(nn.Linear(k, h), nn.SiLU(), nn.Linear(h, h), nn.SiLU(), nn.Linear(h, d))
        self.register_buffer("shift", torch.zeros(d, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(d, dtype=torch.float64))

    def standardise(self, embeddings: Tensor) -> Tensor:
        """(y - shift) / spread, in the dtype of the weights. (b, d) -> (b, d)."""
        weights: Tensor = next(self.parameters())
        return ((embeddings.to(self.shift) - self.shift) / self.spread).to(weights.dtype)

    def posterior(self, y: Tensor) -> Posterior:
        """q(z | y). Standardised y (b, d) -> two of (b, latent_dim)."""
        mean, log_variance = self.encoder(y).chunk(2, dim=-1)
        return Posterior(mean=mean, log_variance=log_variance.clamp(*LOG_VARIANCE_RANGE))

    def negative_elbo(self, y: Tensor, draws: Tensor) -> Tensor:
        """-ELBO by one posterior draw a row: the training loss. y (b, d), draws (b, latent_dim) -> (b,)."""
        q = self.posterior(y)
        z = q.mean + (0.5 * q.log_variance).exp() * draws
        kl = 0.5 * (q.mean.square() + q.log_variance.exp() - q.log_variance - 1.0).sum(-1)
        return kl - gaussian_log_likelihood(y, self.decoder(z), self.sizes.decoder_variance)

    def save(self, path: Path) -> None:
        """Write weights and standardisation as safetensors, the sizes as JSON in its header."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, path, metadata={METADATA_KEY: json.dumps(asdict(self.sizes), sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> TextVae:
        """Read what ``save`` wrote, in the dtype it was saved in."""
        try:
            with safe_open(path, framework="pt") as file:
                sizes = TextVaeSizes(**json.loads((file.metadata() or {})[METADATA_KEY]))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            with torch.device("meta"):  # no weights drawn only to be replaced
                vae = cls(sizes)
            vae.load_state_dict(state, assign=True)
        except FileNotFoundError as error:
            raise PogdiffError(
                f"There is no text density at {path}.",
                hint="Run pogdiff fit-density.",
                exit_code=Exit.MISSING,
            ) from error
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PogdiffError(
                f"{path} is not a text density: {error}.",
                hint="Run pogdiff fit-density --force.",
                exit_code=Exit.DATA,
            ) from error
        return vae


def gaussian_log_likelihood(y: Tensor, mean: Tensor, variance: float) -> Tensor:
    """Log of N(y; mean, variance I), summed over the last axis. (..., d) -> (...)."""
    constant = y.shape[-1] * math.log(2.0 * math.pi * variance)
    return -0.5 * ((y - mean).square().sum(-1) / variance + constant)


def standardised_draws(samples: int, latent_dim: int, *, seed: int) -> Tensor:
    """Normal draws (samples, latent_dim), float64, moved to mean 0 and variance 1 in each latent dimension.

    The average of the sampled log q - log p then is the closed form of the divergence, and captions that
    share the draws differ by their density alone: copies of one caption get one value.
    """
    if samples < 2:
        raise PogdiffError(
            f"{samples} posterior draws cannot be standardised.", hint="Take 2 or more.", exit_code=Exit.USAGE
        )
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(samples, latent_dim, generator=generator, dtype=torch.float64)
    draws = draws - draws.mean(0)
    return draws / draws.square().mean(0).sqrt()


def log_bound(
    y: Tensor,
    q: Posterior,
    decode: Callable[[Tensor], Tensor],
    *,
    decoder_variance: float,
    draws: Tensor,
    bound: Bound = "elbo",
) -> Tensor:
    """elbo: mean_s log w_s; iwae: log mean_s w_s; w_s = p(y | z_s) p(z_s) / q(z_s | y). y (b, d) -> (b,).

    draws (s, latent_dim) are shared by all rows. IWAE >= ELBO for any draws (Jensen). The sum over draws is
    float64 whatever y is.
    """
    deviation = (0.5 * q.log_variance).exp()
    log_w = []
    for draw in draws:
        z = q.mean + deviation * draw
        log_q_over_p = 0.5 * (z.square() - draw.square() - q.log_variance).sum(-1)
        log_w.append((gaussian_log_likelihood(y, decode(z), decoder_variance) - log_q_over_p).double())
    stacked = torch.stack(log_w)  # (s, b)
    if bound == "elbo":
        return stacked.mean(0)
    return stacked.logsumexp(0) - math.log(len(draws))


def log_density(
    vae: TextVae,
    embeddings: NDArray[np.floating],
    *,
    seed: int,
    bound: Bound = "elbo",
    samples: int = 64,
    precision: Precision = "float64",
    chunk: int = 512,
    track: Track = untracked,
) -> NDArray[np.float64]:
    """Eq. (10): a lower bound of log p(y) in the standardised space. (n, d) -> (n,).

    ``precision`` is that of the matrix products; embeddings are standardised and draws are summed in float64.
    """
    device = next(vae.parameters()).device
    dtype = torch.float64 if precision == "float64" else torch.float32
    draws = standardised_draws(samples, vae.sizes.latent_dim, seed=seed).to(device, dtype)
    measured = deepcopy(vae)
    for part in (measured.encoder, measured.decoder):  # not the standardisation, which stays float64
        part.to(dtype)
    values = np.empty(len(embeddings), dtype=np.float64)

    @torch.no_grad()  # a setting of each thread
    def measure(start: int) -> None:
        rows = slice(start, start + chunk)
        y = measured.standardise(torch.from_numpy(np.array(embeddings[rows], dtype=np.float64)).to(device))
        value = log_bound(
            y,
            measured.posterior(y),
            measured.decoder,
            decoder_variance=vae.sizes.decoder_variance,
            draws=draws,
            bound=bound,
        )
        values[rows] = value.cpu().numpy()

    starts = range(0, len(embeddings), chunk)
    for _ in track(one_core_each(measure, starts), "Measuring text density", len(starts)):
        pass
    return values
