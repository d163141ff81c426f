"""Stable Diffusion 1.x, 2.x and XL in one file, under the names that their authors' own code gave the weights.

model.diffusion_model.    the UNet          cond_stage_model.      the text encoder of 1.x and 2.x
first_stage_model.        the VAE           conditioner.embedders. the two of XL
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
TextStyle = Literal["clip", "open_clip"]

_UNET_ENDS = (
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
)
_UNET_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
_VAE_ATTENTION = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
    # what older files call the same
    ("query", "q"),
    ("key", "k"),
    ("value", "v"),
    ("proj_attn", "proj_out"),
)
_OPEN_CLIP = (
    ("encoder.layers.", "transformer.resblocks."),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn", "attn"),
    ("final_layer_norm", "ln_final"),
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
)
_QKV = re.compile(r"(.*\.self_attn)\.q_proj\.(weight|bias)\Z")


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """The original name of a UNet's module or weight."""
    for ours, theirs in (*_UNET_ENDS, *_unet_blocks(config)):
        if name == ours or name.startswith(f"{ours}."):
            rest = name[len(ours) :]
            return theirs + (_renamed(rest, _UNET_RESNET) if ".resnets." in ours else rest)
    raise ValueError(f"the original UNet has no {name}")


def _unet_blocks(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    layers = int(config["layers_per_block"])
    names = []
    for i, _ in enumerate(config["down_block_types"]):
        for j in range(layers):
            place = f"input_blocks.{(layers + 1) * i + j + 1}"
            names += [(f"down_blocks.{i}.resnets.{j}", f"{place}.0"), (f"down_blocks.{i}.attentions.{j}", f"{place}.1")]
        names.append((f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{(layers + 1) * (i + 1)}.0.op"))
    for i, kind in enumerate(config["up_block_types"]):
        for j in range(layers + 1):
            place = f"output_blocks.{(layers + 1) * i + j}"
            names += [(f"up_blocks.{i}.resnets.{j}", f"{place}.0"), (f"up_blocks.{i}.attentions.{j}", f"{place}.1")]
        last = f"output_blocks.{(layers + 1) * i + layers}.{2 if 'CrossAttn' in kind else 1}"
        names.append((f"up_blocks.{i}.upsamplers.0.conv", f"{last}.conv"))
    return names


def vae_name(name: str, blocks: int) -> str:
    """The original name of a VAE's weight; ``blocks``: its number of resolutions."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if "mid_block.attentions.0." in name:
        head, _, rest = name.partition("mid_block.attentions.0")
        name = f"{head}mid.attn_1{_renamed(rest, _VAE_ATTENTION)}"
    return name


def original_unet(weights: Weights, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A UNet's weights."""
    return {f"model.diffusion_model.{unet_name(name, config)}": value for name, value in weights.items()}


def original_vae(weights: Weights, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A VAE's weights; its attention's projections are convolutions of one pixel there."""
    blocks = len(config["block_out_channels"])
    named = {vae_name(name, blocks): value for name, value in weights.items()}
    return {
        f"first_stage_model.{name}": value[:, :, None, None] if ".mid.attn_1." in name and value.ndim == 2 else value
        for name, value in named.items()
    }


def original_text(weights: Weights, style: TextStyle, prefix: str) -> dict[str, Tensor]:
    """A CLIP text encoder's weights, below ``prefix``."""
    plain = {name.removeprefix("text_model."): value for name, value in weights.items() if "position_ids" not in name}
    if style == "clip":
        return {f"{prefix}transformer.text_model.{name}": value for name, value in plain.items()}
    named: dict[str, Tensor] = {}
    for name, value in plain.items():
        if name == "text_projection.weight":
            named["text_projection"] = value.T.contiguous()
        elif found := _QKV.match(name):  # one matrix for query, key and value
            parts = [plain[f"{found[1]}.{part}.{found[2]}"] for part in ("q_proj", "k_proj", "v_proj")]
            named[f"{_open_clip(found[1])}.in_proj_{found[2]}"] = torch.cat(parts)
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            named[_open_clip(name)] = value
    return {f"{prefix}model.{name}": value for name, value in named.items()}


def _open_clip(name: str) -> str:
    for ours, theirs in _OPEN_CLIP:
        name = name.replace(ours, theirs)
    return name


def _renamed(rest: str, names: Sequence[tuple[str, str]]) -> str:
    """The first part of ``.norm1.weight``, translated."""
    for ours, theirs in names:
        if rest.startswith(f".{ours}."):
            return f".{theirs}{rest[len(ours) + 1 :]}"
    return rest
