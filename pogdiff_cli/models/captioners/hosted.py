"""A captioner behind an OpenAI-compatible address."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from PIL import Image

from pogdiff_cli.models.captioners.protocol import Request, instruction_for, one_line
from pogdiff_cli.models.endpoint import Endpoint, Message
from pogdiff_cli.models.pictures import png_of


class _GivenUp(Exception):
    """Another thread failed, or the user wants to leave: nothing more is sent."""


@dataclass(frozen=True, kw_only=True)
class EndpointCaptioner:
    """As many requests at once as ``threads`` says."""

    name: str
    endpoint: Endpoint
    instruction: str
    threads: int

    def describe(self, images: Sequence[Image.Image], requests: Sequence[Request]) -> list[str]:
        """One caption a picture; a picture that the model or a filter refuses to describe has an empty one."""
        stop = threading.Event()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="caption") as pool:
            futures = [pool.submit(self._one, *both, stop) for both in zip(images, requests, strict=True)]
            try:
                wait(futures)
            except BaseException:
                stop.set()  # the user wants to leave
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        failures = [error for future in futures if (error := future.exception()) is not None]
        for error in failures:
            if not isinstance(error, _GivenUp):
                raise error
        return [future.result() for future in futures]

    def _one(self, image: Image.Image, request: Request, stop: threading.Event) -> str:
        def pause(seconds: float) -> None:
            if stop.wait(seconds):
                raise _GivenUp

        if stop.is_set():
            raise _GivenUp
        text = instruction_for(self.instruction, request)
        try:
            answer = self.endpoint.chat([Message(text=text, pictures=(png_of(image),))], pause=pause)
        except BaseException:
            stop.set()
            raise
        return "" if answer.refusal else one_line(answer.text)
