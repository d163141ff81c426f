"""What the engine needs of a model family; every backbone is one class that answers this protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

#: What the denoiser is conditioned on, by name; each tensor's first axis is the batch.
Condition = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """An image's latent Gaussian: ``mean`` and ``std``, each (b, c, h, w), in the denoiser's scale."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, kw_only=True)
class TextEncoding:
    """``condition`` for the denoiser, one row a text; ``pooled`` (n, d) for the density."""

    condition: dict[str, Tensor]
    pooled: Tensor


class Adapter(Protocol):
    """One model family. Tensors live on ``device``; weights that are not trained are in evaluation mode."""

    device: torch.device
    timesteps: int

    def encode_images(self, pixels: Tensor) -> Moments:
        """(b, 3, H, W) in [-1, 1] -> the posterior of the latents."""
        ...

    def encode_text(self, texts: Sequence[str]) -> TextEncoding:
        """Captions -> what the denoiser reads; longer ones are cut at the tokenizer's limit."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without the ones that mark start and end."""
        ...

    @property
    def token_limit(self) -> int:
        """Tokens a caption may have, without the ones that mark start and end."""
        ...

    def load_denoiser(self) -> nn.Module:
        """A fresh float32 copy of the network to train."""
        ...

    def free_encoders(self) -> None:
        """Release VAE and text encoder: training does not need them once all is encoded."""
        ...

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of Algorithm 1, line 8."""
        ...

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's native prediction."""
        ...

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What ``predict`` should return."""
        ...

    def snr_weight(self, t: Tensor, gamma: float | None) -> Tensor:
        """w(t): min-SNR with ``gamma``, or 1."""
        ...

    def alphas_cumprod(self, t: Tensor) -> Tensor:
        """The abar_t of each row, (b,)."""
        ...

    def pipeline(self, denoiser: nn.Module, *, scheduler: str) -> Any:
        """The family's own sampling pipeline around ``denoiser``."""
        ...

    def save(self, denoiser: nn.Module, folder: Path) -> None:
        """Write a folder that the family's own loader reads."""
        ...
