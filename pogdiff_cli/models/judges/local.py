"""A judge from transformers on this machine: ``hf:ID_OR_DIR[@revision]``, safetensors only, no code of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pogdiff_cli.models.completions import ChatAnswer
from pogdiff_cli.models.judges.protocol import Pause, Question
from pogdiff_cli.models.vision_language import VisionLanguageModel, chosen_options, load_vision_language

_OPTIONS = {"temperature": 1.0, "max_new_tokens": 64}


@dataclass(frozen=True, kw_only=True)
class LocalJudge:
    """An image-text-to-text model and its processor."""

    name: str
    model: VisionLanguageModel
    temperature: float
    max_new_tokens: int
    threads: int = 1

    def ask(self, question: Question, *, pause: Pause = time.sleep) -> ChatAnswer:
        """One answer, drawn with the number of the repeat as seed; the likeliest one where temperature is 0."""
        del pause
        (answer,) = self.model.answer(
            [question.images()],
            [question.prompt],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=question.repeat,
        )
        return ChatAnswer(
            text=answer.text, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens
        )


def load_local(spec: str, options: Mapping[str, Any], device: str) -> LocalJudge:
    """Load model and processor; neither custom code nor a pickle is ever read."""
    chosen = chosen_options(spec, options, _OPTIONS)
    return LocalJudge(
        name=spec,
        model=load_vision_language(spec, "judge", device),
        temperature=float(chosen["temperature"]),
        max_new_tokens=int(chosen["max_new_tokens"]),
    )
