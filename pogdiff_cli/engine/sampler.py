"""Generates images: prompts x seeds, the same initial noise for the same (identity, seed), only what is missing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pogdiff_cli.data.draws import Stream, normals
from pogdiff_cli.engine.stamps import bears, write_stamped
from pogdiff_cli.models.adapter import Adapter, Guidance, SchedulerChoice
from pogdiff_cli.progress import Track, untracked


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image: what it shows, which noise it starts from, where it goes; ``stamp``: what it is known again by."""

    prompt: str
    noise_key: int
    seed: int
    path: Path
    stamp: str = ""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How images are generated."""

    seed: int
    resolution: int
    num_inference_steps: int
    guidance: Guidance
    negative_prompt: str
    scheduler: SchedulerChoice
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Encoded texts on the host, each once: ``row`` of a text in ``condition``."""

    row: Mapping[str, int]
    condition: Mapping[str, Tensor]

    def of(self, texts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """The condition of some texts, (b, ...)."""
        rows = torch.tensor([self.row[text] for text in texts])
        return {name: values[rows].to(device) for name, values in self.condition.items()}


def missing(requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Requests whose image is not there, is damaged, or is another's."""
    return [request for request in requests if not bears(request.path, request.stamp)]


def batches(requests: Sequence[ImageRequest], size: int, todo: Iterable[ImageRequest]) -> list[list[ImageRequest]]:
    """The batches of all requests in which something is to do, each as it would be were everything to do.

    In another batch an image's sums round otherwise: so what is made again has the bits that it had.
    """
    wanted = {request.path for request in todo}
    whole = (list(requests[i : i + size]) for i in range(0, len(requests), size))
    return [batch for batch in whole if any(request.path in wanted for request in batch)]


def encode_prompts(
    adapter: Adapter, texts: Iterable[str], settings: SamplingSettings, *, track: Track = untracked
) -> Prompts:
    """Encode each text once, as for training, and the negative prompt; the text encoders leave the device then."""
    distinct = list(dict.fromkeys([*texts, settings.negative_prompt]))
    size = settings.batch_size
    batches = [distinct[i : i + size] for i in range(0, len(distinct), size)]
    encoded = [
        {name: values.cpu() for name, values in adapter.encode_text(batch).condition.items()}
        for batch in track(batches, "Encoding prompts", len(batches))
    ]
    adapter.free_text()
    condition = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
    return Prompts(row={text: i for i, text in enumerate(distinct)}, condition=condition)


def generate(
    adapter: Adapter,
    denoiser: nn.Module,
    requests: Sequence[ImageRequest],
    settings: SamplingSettings,
    *,
    prompts: Prompts | None = None,
    keep: Collection[Path] = (),
    track: Track = untracked,
    label: str = "Generating images",
) -> None:
    """Write every requested image as PNG, but those to ``keep``. ``prompts``: already encoded ones."""
    if prompts is None:
        prompts = encode_prompts(adapter, [request.prompt for request in requests], settings, track=track)
    pipeline = adapter.pipeline(denoiser.eval(), scheduler=settings.scheduler, text="without text")
    size = settings.batch_size
    parts = [requests[i : i + size] for i in range(0, len(requests), size)]
    for batch in track(parts, label, len(parts)):
        for request, image in zip(batch, _images(pipeline, adapter, batch, settings, prompts), strict=True):
            if request.path not in keep:
                write_stamped(image, request.path, request.stamp)


@torch.no_grad()
def _images(
    pipeline: Any, adapter: Adapter, batch: Sequence[ImageRequest], settings: SamplingSettings, prompts: Prompts
) -> list[Any]:
    shape = adapter.latent_shape(settings.resolution)
    noise = [
        normals(settings.seed, Stream.SAMPLE, request.seed, np.array([request.noise_key]), shape)[0]
        for request in batch
    ]
    arguments = adapter.sampling_arguments(
        prompts.of([request.prompt for request in batch], adapter.device),
        prompts.of([settings.negative_prompt] * len(batch), adapter.device),
        torch.from_numpy(np.stack(noise)).to(adapter.device),
        settings.guidance,
    )
    generators = [torch.Generator(adapter.device).manual_seed(_eta_seed(settings.seed, request)) for request in batch]
    output = pipeline(
        **arguments,
        height=settings.resolution,
        width=settings.resolution,
        num_inference_steps=settings.num_inference_steps,
        generator=generators,
    )
    return list(output.images)


def _eta_seed(seed: int, request: ImageRequest) -> int:
    return (seed * 1_000_003 + request.noise_key * 10_007 + request.seed) % 2**63
