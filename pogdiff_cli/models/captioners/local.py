"""A captioner from transformers on this machine: ``hf:ID_OR_DIR[@revision]``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pogdiff_cli.models.captioners.protocol import Pause, Request, instruction_for, one_line
from pogdiff_cli.models.vision_language import VisionLanguageModel, chosen_options, load_vision_language

_OPTIONS = {"max_new_tokens": 80}  # about what CLIP reads


@dataclass(frozen=True, kw_only=True)
class LocalCaptioner:
    """An image-text-to-text model; its captions are the likeliest ones, so that a rerun gives the same."""

    name: str
    model: VisionLanguageModel
    instruction: str
    max_new_tokens: int
    threads: int = 1

    def describe(
        self, images: Sequence[Image.Image], requests: Sequence[Request], *, pause: Pause = time.sleep
    ) -> list[str]:
        """One caption a picture, all of them in one batch."""
        del pause
        answers = self.model.answer(
            [[image.convert("RGB")] for image in images],
            [instruction_for(self.instruction, request) for request in requests],
            max_new_tokens=self.max_new_tokens,
        )
        return [one_line(answer.text) for answer in answers]


def load_local(spec: str, instruction: str, options: Mapping[str, Any], device: str) -> LocalCaptioner:
    """Load the model; neither custom code nor a pickle is ever read."""
    chosen = chosen_options(spec, options, _OPTIONS)
    return LocalCaptioner(
        name=spec,
        model=load_vision_language(spec, "captioner", device),
        instruction=instruction,
        max_new_tokens=int(chosen["max_new_tokens"]),
    )
