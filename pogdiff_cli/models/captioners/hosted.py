"""A captioner behind an OpenAI-compatible address."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from pogdiff_cli.models.captioners.protocol import Pause, Request, instruction_for, one_line
from pogdiff_cli.models.endpoint import Endpoint, Message
from pogdiff_cli.models.pictures import png_of


@dataclass(frozen=True, kw_only=True)
class EndpointCaptioner:
    """One request a picture; ``threads`` threads may ask at once."""

    name: str
    endpoint: Endpoint
    instruction: str
    threads: int

    def describe(
        self, images: Sequence[Image.Image], requests: Sequence[Request], *, pause: Pause = time.sleep
    ) -> list[str]:
        """One caption a picture; a picture that the model or a filter refuses to describe has an empty one."""
        return [self._one(*both, pause) for both in zip(images, requests, strict=True)]

    def _one(self, image: Image.Image, request: Request, pause: Pause) -> str:
        text = instruction_for(self.instruction, request)
        answer = self.endpoint.chat([Message(text=text, pictures=(png_of(image),))], pause=pause)
        return "" if answer.refusal else one_line(answer.text)
