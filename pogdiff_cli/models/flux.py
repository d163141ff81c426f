"""Flux: a T5 sequence, CLIP's pooled embedding, packed latents, an embedded guidance scale, flow matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from pogdiff_cli.models.adapter import Condition, Guidance, TextEncoding
from pogdiff_cli.models.flow import FlowBackbone
from pogdiff_cli.models.text_readers import clip_ids, count_tokens, read_clip, read_t5
from pogdiff_cli.models.texts import Encoders

_SEQUENCE = 512  # the pipeline's default and its limit


class Flux(FlowBackbone):
    """Adapter of the family; the folder is a diffusers FluxPipeline (dev or schnell)."""

    family = "Flux"
    pipeline_class = FluxPipeline
    parts: ClassVar[Mapping[str, str]] = {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "T5Tokenizer",
    }
    clip_encoders = ("text_encoder",)
    guidance_scale = 3.5
    packing = 4

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """CLIP's token ids, and T5's states."""
        length = self.sequence_length(_SEQUENCE, _SEQUENCE)
        long = read_t5(self.part("tokenizer_2"), self.part("text_encoder_2"), texts, length=length)
        return {"ids": clip_ids(self.part("tokenizer"), texts, 1), "long": long}

    def read(self, tokens: Condition, encoders: Encoders) -> TextEncoding:
        """N captions -> T5 states (n, 512, d) and CLIP's pooled embedding (n, d)."""
        pooled = read_clip(encoders["text_encoder"], tokens["ids"], layer="last").pooled
        return TextEncoding(condition={"hidden": tokens["long"], "pooled": pooled}, pooled=pooled.clone())

    @property
    def token_limit(self) -> int:
        """T5's, less the end."""
        return self.sequence_length(_SEQUENCE, _SEQUENCE) - 1

    def count_tokens(self, text: str) -> int:
        """Tokens of T5."""
        return count_tokens(self.part("tokenizer_2"), text)

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The velocity, (b, c, h, w): packed, predicted and unpacked alike for both branches."""
        b, _, h, w = x_t.shape
        guided = bool(self.config("transformer").get("guidance_embeds"))
        scale = x_t.new_full((b,), self.options.guidance_scale) if guided else None
        packed = denoiser(
            hidden_states=pack(x_t),
            timestep=t / self.timesteps,
            guidance=scale,
            encoder_hidden_states=condition["hidden"],
            pooled_projections=condition["pooled"],
            txt_ids=x_t.new_zeros(condition["hidden"].shape[1], 3),
            img_ids=image_ids(h // 2, w // 2, x_t.device),
            return_dict=False,
        )[0]
        return unpack(packed, h, w)

    def sampling_arguments(
        self, condition: Condition, negative: Condition, noise: Tensor, guidance: Guidance
    ) -> dict[str, Any]:
        """The embedded guidance scale, and true guidance against the negative prompt above 1."""
        arguments = super().sampling_arguments(condition, negative, pack(noise), guidance)
        if guidance.true_cfg_scale > 1.0:
            return {**arguments, "true_cfg_scale": guidance.true_cfg_scale}
        return {name: value for name, value in arguments.items() if not name.startswith("negative")}


def pack(x: Tensor) -> Tensor:
    """Squares of 2 x 2 latents to tokens: (b, c, h, w) -> (b, h w / 4, 4 c)."""
    b, c, h, w = x.shape
    squares = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """Tokens to latents: (b, h w / 4, 4 c) -> (b, c, h, w)."""
    b, _, width = tokens.shape
    squares = tokens.reshape(b, h // 2, w // 2, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(b, width // 4, h, w)


def image_ids(rows: int, columns: int, device: torch.device) -> Tensor:
    """(0, row, column) of each token, (rows columns, 3)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).float().to(device)
