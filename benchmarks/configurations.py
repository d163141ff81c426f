"""Arguments of the published denoisers, from their public configurations; and what is smaller in tiny ones."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

SD15: Config = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
SDXL: Config = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "norm_num_groups": 32,
}
SD35: Config = {  # medium
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
FLUX: Config = {  # dev
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}

_TINY_UNET: Config = {"sample_size": 4, "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 8}
_TINY_TRANSFORMER: Config = {
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 64,
}
TINY_SD15: Config = _TINY_UNET | {"block_out_channels": (16, 16, 32, 32), "cross_attention_dim": 32}
TINY_SDXL: Config = _TINY_UNET | {
    "block_out_channels": (16, 16, 32),
    "attention_head_dim": (2, 2, 4),
    "transformer_layers_per_block": (1, 1, 1),
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
TINY_SD35: Config = _TINY_TRANSFORMER | {
    "sample_size": 4,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 8,
    "dual_attention_layers": (0,),
}
TINY_FLUX: Config = _TINY_TRANSFORMER | {
    "num_single_layers": 1,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
