"""Small random pipelines of the real classes, built from configurations and saved in diffusers' own format.

Only weights and sizes differ from what users load: images are 32x32, latents 4x4.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny import save_stable_diffusion, save_tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

WIDTH = 32  # of CLIP
LONG = 48  # of T5


def clip_config(tokenizer: CLIPTokenizer, **changes: Any) -> CLIPTextConfig:
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "projection_dim": WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**(values | changes))


def t5_tokenizer() -> T5TokenizerFast:
    """A unigram tokenizer of single letters, of the class and layout of the published one."""
    letters = [chr(code) for code in range(33, 127)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5TokenizerFast(vocab=[*special, *((letter, -3.0) for letter in letters)], extra_ids=0)


def t5_encoder(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    config = T5Config(vocab_size=len(tokenizer), d_model=LONG, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
    return T5EncoderModel(config)


def vae(channels: int, **changes: float | bool) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **changes,
    )


def save_stable_diffusion_xl(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = save_tokenizer(folder / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=WIDTH + LONG,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="leading"
    )
    StableDiffusionXLPipeline(
        vae=vae(4, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, hidden_size=LONG, hidden_act="gelu")),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def save_stable_diffusion_3(folder: Path, *, with_t5: bool = True) -> Path:
    torch.manual_seed(0)
    tokenizer = save_tokenizer(folder / "tokenizer")
    long = t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,  # as wide as both CLIPs: T5's width below is the same
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),  # as 3.5 medium's first 13
    )
    config = T5Config(vocab_size=len(long), d_model=2 * WIDTH, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clip_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer)),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(config) if with_t5 else None,
        tokenizer_3=long if with_t5 else None,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def save_flux(folder: Path, *, guidance_embeds: bool = True) -> Path:
    torch.manual_seed(0)
    tokenizer = save_tokenizer(folder / "tokenizer")
    long = t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=LONG,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(long),
        tokenizer_2=long,
        transformer=transformer,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


#: How each family's pipeline is made.
SAVE: dict[str, Callable[[Path], Path]] = {
    "sd": save_stable_diffusion,
    "sd-v": lambda folder: save_stable_diffusion(folder, prediction_type="v_prediction"),
    "sdxl": save_stable_diffusion_xl,
    "sd3": save_stable_diffusion_3,
    "flux": save_flux,
}
