"""Published architectures with random weights: built from configurations, saved as diffusers saves pipelines.

Denoisers have their published sizes. Autoencoders and Stable Diffusion 1.5's text encoder have too, for the plain
loop runs them at every step. Of the other text encoders only the widths are true: ours runs them once, before
training, and their layers would fill disks. ``tiny`` is the same with a few small layers.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from benchmarks import configurations
from benchmarks.configurations import Config
from pogdiff_cli.project.templates import template_root

Size = Literal["published", "tiny"]
_SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
_LEVELS = {"published": (128, 256, 512, 512), "tiny": (8, 8, 16, 16)}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A family at one size: its denoiser, how long its texts are, and how its pipeline is saved."""

    title: str
    denoiser: type
    published: Config
    tiny: Config
    tokens: int
    save: Callable[[Path, Size], None]

    def config(self, size: Size) -> Config:
        """The denoiser's arguments."""
        return self.published if size == "published" else self.published | self.tiny


def build(architecture: Architecture, size: Size) -> Any:
    """The denoiser, on the default device and in the default type."""
    return architecture.denoiser(**architecture.config(size))


def _save_sd15(folder: Path, size: Size) -> None:
    tokenizer = _tokenizer(folder)
    StableDiffusionPipeline(
        vae=_vae(size, 4, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(_clip(tokenizer, size, layers=12, width=768)),
        tokenizer=tokenizer,
        unet=build(ARCHITECTURES["sd15"], size),
        scheduler=DDIMScheduler(**_SCALED_LINEAR, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def _save_sdxl(folder: Path, size: Size) -> None:
    tokenizer = _tokenizer(folder)
    StableDiffusionXLPipeline(
        vae=_vae(size, 4, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(_clip(tokenizer, size, layers=2, width=768)),
        text_encoder_2=CLIPTextModelWithProjection(_clip(tokenizer, size, layers=2, width=1280)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=build(ARCHITECTURES["sdxl"], size),
        scheduler=EulerDiscreteScheduler(**_SCALED_LINEAR, timestep_spacing="leading"),
        add_watermarker=False,
    ).save_pretrained(folder)


def _save_sd35(folder: Path, size: Size) -> None:
    tokenizer, long = _tokenizer(folder), _long_tokenizer()
    StableDiffusion3Pipeline(
        transformer=build(ARCHITECTURES["sd35"], size),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(size, 16, scaling_factor=1.5305, shift_factor=0.0609, **_PLAIN_LATENTS),
        text_encoder=CLIPTextModelWithProjection(_clip(tokenizer, size, layers=2, width=768)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_clip(tokenizer, size, layers=2, width=1280)),
        tokenizer_2=tokenizer,
        text_encoder_3=_t5(long, 4096 if size == "published" else 64),
        tokenizer_3=long,
    ).save_pretrained(folder)


def _save_flux(folder: Path, size: Size) -> None:
    tokenizer, long = _tokenizer(folder), _long_tokenizer()
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(size, 16, scaling_factor=0.3611, shift_factor=0.1159, **_PLAIN_LATENTS),
        text_encoder=CLIPTextModel(_clip(tokenizer, size, layers=2, width=768)),
        tokenizer=tokenizer,
        text_encoder_2=_t5(long, 4096 if size == "published" else 64),
        tokenizer_2=long,
        transformer=build(ARCHITECTURES["flux"], size),
    ).save_pretrained(folder)


_PLAIN_LATENTS = {"use_quant_conv": False, "use_post_quant_conv": False}


def _vae(size: Size, channels: int, **changes: float | bool) -> AutoencoderKL:
    levels = _LEVELS[size]
    return AutoencoderKL(
        block_out_channels=levels,
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        layers_per_block=2 if size == "published" else 1,
        latent_channels=channels,
        norm_num_groups=32 if size == "published" else 4,
        sample_size=512,
        **changes,
    )


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """The faces template's: CLIP's class and length, with a small vocabulary."""
    shutil.copytree(template_root() / "faces" / "base" / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


def _clip(tokenizer: CLIPTokenizer, size: Size, *, layers: int, width: int) -> CLIPTextConfig:
    if size == "tiny":
        layers, width = 1, 32
    return CLIPTextConfig(
        vocab_size=49408 if size == "published" else len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // 64),
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _long_tokenizer() -> T5TokenizerFast:
    letters = [(chr(code), -3.0) for code in range(33, 127)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5TokenizerFast(vocab=[*special, *letters], extra_ids=0)


def _t5(tokenizer: T5TokenizerFast, width: int) -> T5EncoderModel:
    heads = width // 64
    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=64, d_ff=2 * width, num_layers=1, num_heads=heads)
    )


ARCHITECTURES = {
    "sd15": Architecture(
        title="Stable Diffusion 1.5",
        denoiser=UNet2DConditionModel,
        published=configurations.SD15,
        tiny=configurations.TINY_SD15,
        tokens=77,
        save=_save_sd15,
    ),
    "sdxl": Architecture(
        title="Stable Diffusion XL",
        denoiser=UNet2DConditionModel,
        published=configurations.SDXL,
        tiny=configurations.TINY_SDXL,
        tokens=77,
        save=_save_sdxl,
    ),
    "sd35": Architecture(
        title="Stable Diffusion 3.5 medium",
        denoiser=SD3Transformer2DModel,
        published=configurations.SD35,
        tiny=configurations.TINY_SD35,
        tokens=77 + 256,
        save=_save_sd35,
    ),
    "flux": Architecture(
        title="Flux dev",
        denoiser=FluxTransformer2DModel,
        published=configurations.FLUX,
        tiny=configurations.TINY_FLUX,
        tokens=512,
        save=_save_flux,
    ),
}


def save_random(name: str, size: Size, folder: Path) -> None:
    """A pipeline folder. Published sizes are drawn on the GPU and kept in bfloat16; training reads them as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if size == "tiny":
        ARCHITECTURES[name].save(folder, size)
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            ARCHITECTURES[name].save(folder, size)
    finally:
        torch.set_default_dtype(before)
    gc.collect()
    torch.cuda.empty_cache()


def save_extractor(folder: Path) -> Path:
    """A small random ViT: neighbours have to come from somewhere."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
