"""Stable Diffusion 3 and 3.5: two CLIP encoders and T5, a joint-attention transformer, flow matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.nn.functional import pad

from pogdiff_cli.models.adapter import Condition, TextEncoding
from pogdiff_cli.models.flow import FlowBackbone
from pogdiff_cli.models.text_readers import clip_ids, count_tokens, read_clip, read_t5
from pogdiff_cli.models.texts import Encoders

_SEQUENCE = 256  # the pipeline's default
_LONGEST = 512


class StableDiffusion3(FlowBackbone):
    """Adapter of the family; the folder is a diffusers StableDiffusion3Pipeline. It may come without T5."""

    family = "Stable Diffusion 3"
    pipeline_class = StableDiffusion3Pipeline
    parts: ClassVar[Mapping[str, str]] = {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "tokenizer_3": "T5Tokenizer",
    }
    clip_encoders = ("text_encoder", "text_encoder_2")
    optional = frozenset({"text_encoder_3", "tokenizer_3"})
    guidance_scale = 7.0

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Both CLIPs' token ids, and T5's states."""
        ids = {name: clip_ids(self.part(f"tokenizer{name[3:]}"), texts, 1) for name in ("ids", "ids_2")}
        return {**ids, "long": self._t5(texts)}

    def read(self, tokens: Condition, encoders: Encoders) -> TextEncoding:
        """N captions -> CLIP states, padded in width, before T5 states (n, 77 + 256, d); both pooled (n, d1 + d2)."""
        first = read_clip(encoders["text_encoder"], tokens["ids"], layer="penultimate")
        second = read_clip(encoders["text_encoder_2"], tokens["ids_2"], layer="penultimate")
        long = tokens["long"]
        clip = torch.cat([first.hidden, second.hidden], dim=-1)
        clip = pad(clip, (0, long.shape[-1] - clip.shape[-1]))
        condition = {
            "hidden": torch.cat([clip, long], dim=1),
            "pooled": torch.cat([first.pooled, second.pooled], dim=-1),
        }
        return TextEncoding(condition=condition, pooled=first.pooled)

    def _t5(self, texts: Sequence[str]) -> Tensor:
        length = self.sequence_length(_SEQUENCE, _LONGEST)
        if not self.has("text_encoder_3"):
            width = int(self.config("transformer")["joint_attention_dim"])
            return torch.zeros(len(texts), length, width, device=self.device)
        return read_t5(self.part("tokenizer_3"), self.part("text_encoder_3"), texts, length=length)

    @property
    def token_limit(self) -> int:
        """T5's, which reads furthest; CLIP's where there is no T5."""
        if not self.has("text_encoder_3"):
            return int(self.part("tokenizer").model_max_length) - 2
        return self.sequence_length(_SEQUENCE, _LONGEST) - 1

    def count_tokens(self, text: str) -> int:
        """Tokens of the encoder that reads furthest."""
        return count_tokens(self.part("tokenizer_3" if self.has("text_encoder_3") else "tokenizer"), text)

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The velocity, (b, c, h, w)."""
        return cast(
            Tensor,
            denoiser(
                hidden_states=x_t,
                timestep=t,
                encoder_hidden_states=condition["hidden"],
                pooled_projections=condition["pooled"],
                return_dict=False,
            )[0],
        )
