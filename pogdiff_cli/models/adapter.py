"""What the engine needs of a model family; every backbone is one class that answers this protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

#: What the denoiser is conditioned on, by name; each tensor's first axis is the batch.
Condition = Mapping[str, Tensor]
SchedulerChoice = Literal["auto", "ddim", "native"]
TextParts = Literal["with text", "without text"]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """An image's latent Gaussian: ``mean`` and ``std``, each (b, c, h, w), in the denoiser's scale."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, kw_only=True)
class TextEncoding:
    """``condition`` for the denoiser, one row a text; ``pooled`` (n, d) for the density: the first CLIP's."""

    condition: dict[str, Tensor]
    pooled: Tensor


@dataclass(frozen=True, kw_only=True)
class FamilyOptions:
    """What a user may choose of a family; None is the family's own."""

    max_token_length: int | None = None
    timestep_sampling: Literal["uniform", "logit_normal"] | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0
    guidance_scale: float = 1.0  # fed to models that embed a guidance scale, while they train


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly images follow their prompts; each family takes what its pipeline has."""

    guidance_scale: float | None = None  # None: the family's own
    true_cfg_scale: float = 1.0
    eta: float = 0.0


class Adapter(Protocol):
    """One model family. Tensors live on ``device``; weights that are not trained are in evaluation mode."""

    device: torch.device
    timesteps: int

    @property
    def family(self) -> str:
        """The family's name, for people."""
        ...

    @property
    def denoiser_name(self) -> str:
        """The component that is trained: ``unet`` or ``transformer``."""
        ...

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The attention projections of the family, as LoRA targets."""
        ...

    @property
    def clip_encoders(self) -> tuple[str, ...]:
        """The text encoders that LoRA can be trained on: CLIP's; T5 stays as it is."""
        ...

    @property
    def unread_layers(self) -> Mapping[str, int]:
        """Of some of them, how many last layers no condition depends on."""
        ...

    @property
    def times(self) -> Callable[[NDArray[np.float64]], NDArray[Any]]:
        """Uniform draws (b,) -> timesteps (b,); small enough to be sent to another process."""
        ...

    def encode_images(self, pixels: Tensor) -> Moments:
        """(b, 3, H, W) in [-1, 1] -> the posterior of the latents."""
        ...

    def encode_text(self, texts: Sequence[str]) -> TextEncoding:
        """Captions -> what the denoiser reads; longer ones are cut at ``token_limit``."""
        ...

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """All that is known of captions before a CLIP encoder reads them: token ids, T5's states; a row each."""
        ...

    def conditioned(self, condition: Condition, encoders: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """A condition whose texts are ``tokens`` -> one that the denoiser reads, with gradients to ``encoders``."""
        ...

    def load_part(self, component: str) -> Any:
        """A fresh frozen component, which nobody else changes."""
        ...

    def use_text_encoders(self, encoders: Mapping[str, nn.Module]) -> None:
        """Read texts with these from now on; they are not released."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without the ones that mark start and end."""
        ...

    @property
    def token_limit(self) -> int:
        """Tokens a caption may have, without the ones that mark start and end."""
        ...

    def image_condition(
        self, original: NDArray[np.int64], corner: NDArray[np.int64], target: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        """What belongs to images, not to captions: original size, crop corner, size kept, each (n, 2), height first."""
        ...

    def load_denoiser(self, folder: Path | None = None, *, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A fresh copy of the network to train; of another pipeline's folder where one is named.

        Whatever ``dtype`` its weights have, it takes and returns float32.
        """
        ...

    def free_encoders(self) -> None:
        """Release VAE and text encoders: training does not need them once all is encoded."""
        ...

    def free_text(self) -> None:
        """Release the text encoders: sampling does not need them once all prompts are encoded."""
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
        """Share of the signal's variance in ``variance_preserving``, (b,)."""
        ...

    def variance_preserving(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t scaled to sqrt(abar) x0 + sqrt(1 - abar) noise; itself where it is that already."""
        ...

    @property
    def side_multiple(self) -> int:
        """Sides of images are multiples of so many pixels."""
        ...

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(c, h, w) of the latents of a square image."""
        ...

    def scheduler(self, kind: SchedulerChoice) -> Any:
        """The sampler that ``kind`` means for this family."""
        ...

    def pipeline(self, denoiser: nn.Module, *, scheduler: SchedulerChoice, text: TextParts = "with text") -> Any:
        """The family's own sampling pipeline around ``denoiser``."""
        ...

    def sampling_arguments(
        self, condition: Condition, negative: Condition, noise: Tensor, guidance: Guidance
    ) -> dict[str, Any]:
        """What the pipeline is called with for prompts (b rows) and initial noise (b, c, h, w)."""
        ...

    def save(self, denoiser: nn.Module, folder: Path, text: Mapping[str, Mapping[str, Tensor]] | None = None) -> None:
        """Write a folder that the family's own loader reads; ``text``: weights of text encoders, by component."""
        ...

    def save_lora(self, layers: Mapping[str, dict[str, Tensor]], folder: Path, metadata: Mapping[str, Any]) -> None:
        """Write LoRA weights, by component, as the family's own pipeline reads them."""
        ...
