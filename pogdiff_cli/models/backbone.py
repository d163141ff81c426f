"""What the families have in common: components of a diffusers folder, loaded frozen, and the path of the noise."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Condition, FamilyOptions, Guidance, Moments, SchedulerChoice, TextParts
from pogdiff_cli.models.components import copy_components, load_component, replace_weights
from pogdiff_cli.models.foreign import read_from
from pogdiff_cli.models.noise_path import NoisePath, Times
from pogdiff_cli.models.precision import autocast_forward
from pogdiff_cli.models.texts import Encoders, ReadsTexts
from pogdiff_cli.models.weights import component_classes, read_json


class Backbone(ReadsTexts):
    """Frozen components by name, loaded when first asked for. Subclasses are the families."""

    family: ClassVar[str]
    pipeline_class: ClassVar[Any]
    parts: ClassVar[Mapping[str, str]]  # component: class
    optional: ClassVar[frozenset[str]] = frozenset()
    denoiser_name: ClassVar[str]
    lora_targets: ClassVar[tuple[str, ...]]
    guidance_scale: ClassVar[float]  # of sampling, where none is chosen
    latent_multiple: ClassVar[int] = 1  # latents are read in squares of this side
    packing: ClassVar[int] = 1  # latents that the denoiser takes as one
    path: NoisePath

    def __init__(self, folder: Path, *, device: torch.device, options: FamilyOptions | None = None) -> None:
        self.folder, self.device = folder, device
        self.options = options or FamilyOptions()
        self._loaded: dict[str, Any] = {}
        self._used: Encoders = {}
        self._configs: dict[str, dict[str, Any]] = {}
        self._found = component_classes(folder)
        for component, expected in self.parts.items():
            found = self._found.get(component, "missing")
            if found == "missing" and component in self.optional:
                continue
            if found.removesuffix("Fast") != expected:
                raise PogdiffError(
                    f"{folder}: its {component} is {found}, not {expected}.",
                    hint=f"A {self.family} pipeline has {', '.join(self.parts.values())}.",
                    exit_code=Exit.MISSING,
                )
        self._refuse_other_inputs()
        self.path = self._noise_path()
        self.timesteps = int(read_json(folder / "scheduler" / "scheduler_config.json").get("num_train_timesteps", 1000))

    def _refuse_other_inputs(self) -> None:
        """Inpainting and control models have the family's classes, and further channels."""
        reads = self.config(self.denoiser_name).get("in_channels")
        wanted = self.packing * int(self.config("vae")["latent_channels"])
        if reads != wanted:
            raise PogdiffError(
                f"{self.folder}: its {self.denoiser_name} reads {reads} channels, not the {wanted} of its latents.",
                hint="Models for inpainting, depth or edges are not trained; take the text-to-image one.",
                exit_code=Exit.MISSING,
            )

    @abstractmethod
    def _noise_path(self) -> NoisePath:
        """How noise and image mix in this family."""

    # components

    def has(self, component: str) -> bool:
        """Whether the pipeline has this component."""
        return component in self._found

    def part(self, component: str) -> Any:
        """A tokenizer, a frozen text encoder or the frozen VAE; None where the pipeline does without it."""
        if component in self._used:
            return self._used[component]
        if component not in self._loaded:
            self._loaded[component] = self.load_part(component) if self.has(component) else None
        return self._loaded[component]

    def load_part(self, component: str) -> Any:
        """A fresh one, which nobody else changes."""
        return load_component(self.folder, component, self.parts[component], self.device)

    def use_text_encoders(self, encoders: Encoders) -> None:
        """Read texts with these from now on, in sampling too; they stay when text encoders are released."""
        self._used = encoders

    @property
    def vae(self) -> Any:
        """The frozen image autoencoder."""
        return self.part("vae")

    def config(self, component: str) -> dict[str, Any]:
        """A component's configuration, without its weights."""
        if component not in self._configs:
            self._configs[component] = read_json(self.folder / component / "config.json")
        return self._configs[component]

    def load_denoiser(self, folder: Path | None = None, *, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A fresh denoiser on the device; of another pipeline's folder where one is named."""
        cls = getattr(diffusers, self.parts[self.denoiser_name])
        with read_from(folder or self.folder, self.denoiser_name):
            model = cls.from_pretrained(
                folder or self.folder,
                subfolder=self.denoiser_name,
                use_safetensors=True,
                torch_dtype=dtype,
                local_files_only=True,
            )
        model = model.to(self.device)
        if dtype != torch.float32:
            autocast_forward(model, self.device, dtype)
        return cast(nn.Module, model)

    def free_encoders(self) -> None:
        """Drop VAE and text encoders; they load again when asked for."""
        self._loaded.pop("vae", None)
        self.free_text()

    def free_text(self) -> None:
        """Drop the text encoders; tokenizers are small and stay."""
        for name in [name for name in self._loaded if name.startswith("text_encoder")]:
            del self._loaded[name]
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # images

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Moments:
        """(b, 3, H, W) in [-1, 1] -> mean and std, each (b, c, h, w), scaled as the denoiser expects."""
        for side in pixels.shape[-2:]:
            self.latent_shape(side)
        posterior = self.vae.encode(pixels.to(self.device)).latent_dist
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        scale = self.vae.config.scaling_factor
        return Moments(mean=(posterior.mean - shift) * scale, std=posterior.std * scale)

    @property
    def vae_factor(self) -> int:
        """Pixels a latent is wide."""
        return int(2 ** (len(self.config("vae")["block_out_channels"]) - 1))

    @property
    def side_multiple(self) -> int:
        """Sides of images are multiples of so many pixels."""
        return self.vae_factor * self.latent_multiple

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(c, h, w) of the latents of a square image."""
        step = self.side_multiple
        if resolution % step:
            raise PogdiffError(
                f"{self.family} takes images whose side is a multiple of {step}, not {resolution}.",
                hint=f"Set data.resolution to {max(resolution // step, 1) * step}.",
                exit_code=Exit.USAGE,
            )
        side = resolution // self.vae_factor
        return int(self.config("vae")["latent_channels"]), side, side

    def image_condition(
        self, original: NDArray[np.int64], corner: NDArray[np.int64], target: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        """Nothing, but for families that look at the original size."""
        del original, corner, target
        return {}

    # noise

    @property
    def times(self) -> Times:
        """Uniform draws to timesteps."""
        return self.path.times

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of Algorithm 1, line 8."""
        return self.path.add_noise(x0, noise, t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The native target."""
        return self.path.target(x0, noise, t)

    def snr_weight(self, t: Tensor, gamma: float | None) -> Tensor:
        """w(t), (b,): min-SNR for the model's parametrisation, or ones."""
        return self.path.snr_weight(t, gamma)

    def alphas_cumprod(self, t: Tensor) -> Tensor:
        """Share of the signal's variance, (b,)."""
        return self.path.alphas_cumprod(t)

    def variance_preserving(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t on the variance-preserving path."""
        return self.path.variance_preserving(x_t, t)

    # results

    def scheduler(self, kind: SchedulerChoice) -> Any:
        """The scheduler that the base names; subclasses know others."""
        if kind == "ddim":
            raise PogdiffError(
                f"DDIM does not sample flow models such as {self.family}.",
                hint="Set sample.scheduler to auto or native.",
                exit_code=Exit.USAGE,
            )
        name = self._found.get("scheduler", "")
        if not name.endswith("Scheduler") or not hasattr(diffusers, name):
            raise PogdiffError(f"{self.folder}: the scheduler '{name}' is unknown.", exit_code=Exit.MISSING)
        return getattr(diffusers, name).from_pretrained(self.folder, subfolder="scheduler", local_files_only=True)

    def pipeline(self, denoiser: nn.Module, *, scheduler: SchedulerChoice, text: TextParts = "with text") -> Any:
        """Diffusers' own pipeline around the given denoiser."""
        named = {name: None if self._without(name, text) else self.part(name) for name in self.parts}
        named[self.denoiser_name] = denoiser
        pipeline = self.pipeline_class(**named, scheduler=self.scheduler(scheduler), **self._pipeline_options())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _without(self, component: str, text: TextParts) -> bool:
        return component == self.denoiser_name or (text == "without text" and component.startswith("text_encoder"))

    def sampling_arguments(
        self, condition: Condition, negative: Condition, noise: Tensor, guidance: Guidance
    ) -> dict[str, Any]:
        """What the pipeline is called with: classifier-free guidance away from the negative prompt."""
        chosen = guidance.guidance_scale
        arguments: dict[str, Any] = {
            "prompt_embeds": condition["hidden"],
            "negative_prompt_embeds": negative["hidden"],
            "latents": noise,
            "guidance_scale": self.guidance_scale if chosen is None else chosen,
        }
        if "pooled" in condition:
            arguments["pooled_prompt_embeds"] = condition["pooled"]
            arguments["negative_pooled_prompt_embeds"] = negative["pooled"]
        return arguments

    def _pipeline_options(self) -> dict[str, Any]:
        return {}

    def save(self, denoiser: nn.Module, folder: Path, text: Mapping[str, Mapping[str, Tensor]] | None = None) -> None:
        """A whole pipeline folder: the denoiser, ``text`` encoders' weights, all else copied byte for byte."""
        kept = [name for name in (*self.parts, "scheduler") if name != self.denoiser_name and self.has(name)]
        copy_components(self.folder, folder, kept, trained=self.denoiser_name)
        cast(Any, denoiser).save_pretrained(folder / self.denoiser_name, safe_serialization=True)
        for component, weights in (text or {}).items():
            replace_weights(folder / component, weights)

    def save_lora(self, layers: Mapping[str, dict[str, Tensor]], folder: Path, metadata: Mapping[str, Any]) -> None:
        """``pytorch_lora_weights.safetensors`` as ``load_lora_weights`` reads it; layers and metadata by component."""
        named: dict[str, Any] = {}
        for component, tensors in layers.items():
            named |= {
                f"{component}_lora_layers": tensors,
                f"{component}_lora_adapter_metadata": metadata[component],
            }
        self.pipeline_class.save_lora_weights(folder, safe_serialization=True, **named)
