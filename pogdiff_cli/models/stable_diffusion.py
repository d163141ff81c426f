"""Stable Diffusion 1.x and 2.x: AutoencoderKL, CLIP text encoder, conditional UNet; epsilon or v-prediction."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.method import min_snr_weight
from pogdiff_cli.models.adapter import Condition, Moments, TextEncoding
from pogdiff_cli.models.weights import component_classes

_CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}


class StableDiffusion:
    """Adapter of the family; the folder is a diffusers StableDiffusionPipeline."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        found = component_classes(folder)
        for component, expected in _CLASSES.items():
            if found.get(component, "").removesuffix("Fast") != expected:
                raise PogdiffError(
                    f"{folder}: its {component} is {found.get(component, 'missing')}, not {expected}.",
                    hint="This version trains Stable Diffusion 1.x and 2.x pipelines.",
                    exit_code=Exit.MISSING,
                )
        self.folder = folder
        self.device = device
        self.noise_scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.timesteps = int(self.noise_scheduler.config.num_train_timesteps)

    @cached_property
    def tokenizer(self) -> Any:
        """The CLIP tokenizer."""
        return CLIPTokenizer.from_pretrained(self.folder, subfolder="tokenizer", local_files_only=True)

    @cached_property
    def text_encoder(self) -> Any:
        """The frozen CLIP text encoder, float32."""
        model = CLIPTextModel.from_pretrained(
            self.folder,
            subfolder="text_encoder",
            use_safetensors=True,
            dtype=torch.float32,
            local_files_only=True,
        )
        return _frozen(model).to(self.device)

    @cached_property
    def vae(self) -> Any:
        """The frozen image autoencoder, float32 (half precision gives black images)."""
        model = AutoencoderKL.from_pretrained(
            self.folder, subfolder="vae", use_safetensors=True, torch_dtype=torch.float32
        )
        return _frozen(model).to(self.device)

    @property
    def prediction_type(self) -> str:
        """``epsilon`` or ``v_prediction``."""
        return str(self.noise_scheduler.config.prediction_type)

    @property
    def token_limit(self) -> int:
        """77 positions less start and end."""
        return int(self.tokenizer.model_max_length) - 2

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without start and end."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Moments:
        """(b, 3, H, W) in [-1, 1] -> mean and std, each (b, c, H/8, W/8), scaled as the UNet expects."""
        posterior = self.vae.encode(pixels.to(self.device)).latent_dist
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        scale = self.vae.config.scaling_factor
        return Moments(mean=(posterior.mean - shift) * scale, std=posterior.std * scale)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> TextEncoding:
        """N captions -> hidden states (n, 77, d) and the pooled embedding (n, d)."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.token_limit + 2,
            return_tensors="pt",
        )
        output = self.text_encoder(tokens["input_ids"].to(self.device))
        return TextEncoding(condition={"hidden": output.last_hidden_state}, pooled=output.pooler_output)

    def load_denoiser(self) -> nn.Module:
        """A fresh float32 UNet on the device."""
        model = UNet2DConditionModel.from_pretrained(
            self.folder, subfolder="unet", use_safetensors=True, torch_dtype=torch.float32
        )
        return cast(nn.Module, model.to(self.device))

    def free_encoders(self) -> None:
        """Drop VAE and text encoder; they load again when asked for."""
        for name in ("vae", "text_encoder"):
            self.__dict__.pop(name, None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Algorithm 1, line 8: sqrt(abar_t) x0 + sqrt(1 - abar_t) eps."""
        return cast(Tensor, self.noise_scheduler.add_noise(x0, noise, t))

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """H = f(x_t, t, y), (b, c, h, w)."""
        return cast(Tensor, denoiser(x_t, t, encoder_hidden_states=condition["hidden"], return_dict=False)[0])

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Epsilon, or v = sqrt(abar) eps - sqrt(1 - abar) x0."""
        if self.prediction_type == "v_prediction":
            return cast(Tensor, self.noise_scheduler.get_velocity(x0, noise, t))
        return noise

    def snr_weight(self, t: Tensor, gamma: float | None) -> Tensor:
        """w(t), (b,): min-SNR for the model's parametrisation, or ones."""
        if gamma is None:
            return torch.ones(t.shape, device=t.device)
        snr = compute_snr(self.noise_scheduler, t)
        return min_snr_weight(snr, gamma, "v_prediction" if self.prediction_type == "v_prediction" else "epsilon")

    def alphas_cumprod(self, t: Tensor) -> Tensor:
        """The abar_t of each row, (b,)."""
        return cast(Tensor, self.noise_scheduler.alphas_cumprod.to(t.device)[t])

    def scheduler(self, kind: str) -> SchedulerMixin:
        """``ddim``: the base's noise schedule under DDIM. ``native``: the scheduler that the base names."""
        if kind == "ddim":
            return DDIMScheduler.from_pretrained(self.folder, subfolder="scheduler", clip_sample=False)
        name = component_classes(self.folder).get("scheduler", "")
        if not name.endswith("Scheduler") or not hasattr(diffusers, name):
            raise PogdiffError(f"{self.folder}: the scheduler '{name}' is unknown.", exit_code=Exit.MISSING)
        return getattr(diffusers, name).from_pretrained(self.folder, subfolder="scheduler")

    def pipeline(self, denoiser: nn.Module, *, scheduler: str) -> StableDiffusionPipeline:
        """Diffusers' own pipeline around the given UNet."""
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=denoiser,
            scheduler=self.scheduler(scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save(self, denoiser: nn.Module, folder: Path) -> None:
        """A whole pipeline folder that ``StableDiffusionPipeline.from_pretrained`` reads."""
        self.pipeline(denoiser, scheduler="native").save_pretrained(folder, safe_serialization=True)


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)
