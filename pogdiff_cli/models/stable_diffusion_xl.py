"""Stable Diffusion XL: two CLIP text encoders, the second's pooled embedding, and the image's sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray
from torch import Tensor, nn

from pogdiff_cli.models.adapter import Condition, TextEncoding
from pogdiff_cli.models.stable_diffusion import UNET_ATTENTION, VariancePreservingBackbone
from pogdiff_cli.models.text_readers import clip_ids, read_clip
from pogdiff_cli.models.texts import Encoders
from pogdiff_cli.models.weights import pipeline_index


class StableDiffusionXL(VariancePreservingBackbone):
    """Adapter of the family; the folder is a diffusers StableDiffusionXLPipeline."""

    family = "Stable Diffusion XL"
    pipeline_class = StableDiffusionXLPipeline
    parts: ClassVar[Mapping[str, str]] = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
    }
    denoiser_name = "unet"
    clip_encoders = ("text_encoder", "text_encoder_2")
    unread_layers: ClassVar[Mapping[str, int]] = {"text_encoder": 1}  # of it the penultimate states alone are read
    lora_targets = UNET_ATTENTION
    guidance_scale = 5.0

    @property
    def zeros_for_empty(self) -> bool:
        """Whether this base reads an empty prompt as zeros, as its pipeline does."""
        return bool(pipeline_index(self.folder).get("force_zeros_for_empty_prompt", True))

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Both CLIPs' token ids; whether anything is said."""
        ids = {name: clip_ids(self.part(f"tokenizer{name[3:]}"), texts, self.clip_chunks) for name in ("ids", "ids_2")}
        return {**ids, "said": torch.tensor([float(bool(text)) for text in texts])}

    def read(self, tokens: Condition, encoders: Encoders) -> TextEncoding:
        """N captions -> both encoders' states side by side (n, 77, d1 + d2), the second's pooled (n, d2)."""
        first = read_clip(encoders["text_encoder"], tokens["ids"], layer="penultimate")
        second = read_clip(encoders["text_encoder_2"], tokens["ids_2"], layer="penultimate")
        condition = {"hidden": torch.cat([first.hidden, second.hidden], dim=-1), "pooled": second.pooled}
        if self.zeros_for_empty:  # what the pipeline guides away from is what a dropped caption trains
            said = tokens["said"]
            condition = {
                name: value * said.reshape(-1, *[1] * (value.ndim - 1)).to(value.dtype)
                for name, value in condition.items()
            }
        return TextEncoding(condition=condition, pooled=first.pooled)

    def image_condition(
        self, original: NDArray[np.int64], corner: NDArray[np.int64], target: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        """Time ids (n, 6): original size, crop corner, target size. They belong to x, not to its caption."""
        return {"time_ids": np.concatenate([original, corner, target], axis=1).astype(np.float32)}

    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """H = f(x_t, t, y; sizes of x), (b, c, h, w)."""
        sizes = condition["time_ids"] if "time_ids" in condition else self._whole(x_t)
        return cast(
            Tensor,
            denoiser(
                x_t,
                t,
                encoder_hidden_states=condition["hidden"],
                added_cond_kwargs={"text_embeds": condition["pooled"], "time_ids": sizes},
                return_dict=False,
            )[0],
        )

    def _whole(self, x_t: Tensor) -> Tensor:
        """Time ids of images that were not cropped or scaled, as the pipeline has them."""
        height, width = (side * self.vae_factor for side in x_t.shape[-2:])
        return x_t.new_tensor([height, width, 0, 0, height, width]).expand(len(x_t), 6)

    def _pipeline_options(self) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": self.zeros_for_empty, "add_watermarker": False}
