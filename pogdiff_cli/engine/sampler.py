"""Generates images: prompts x seeds, the same initial noise for the same (identity, seed), only what is missing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pogdiff_cli.data.draws import Stream, normals
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.atomic import HIDDEN, explained


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image: what it shows, which noise it starts from, where it goes."""

    prompt: str
    noise_key: int
    seed: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How images are generated."""

    seed: int
    resolution: int
    num_inference_steps: int
    guidance_scale: float
    eta: float
    scheduler: str
    batch_size: int


def missing(requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Requests whose image is not there yet (a file appears whole or not at all)."""
    return [request for request in requests if not request.path.is_file()]


def generate(
    adapter: Adapter,
    denoiser: nn.Module,
    requests: Sequence[ImageRequest],
    settings: SamplingSettings,
    *,
    track: Track = untracked,
    label: str = "Generating images",
) -> None:
    """Write every requested image as PNG."""
    pipeline = adapter.pipeline(denoiser.eval(), scheduler=settings.scheduler)
    size = settings.batch_size
    batches = [requests[i : i + size] for i in range(0, len(requests), size)]
    for batch in track(batches, label, len(batches)):
        for request, image in zip(batch, _images(pipeline, adapter, batch, settings), strict=True):
            _write_png(image, request.path)


@torch.no_grad()
def _images(pipeline: Any, adapter: Adapter, batch: Sequence[ImageRequest], settings: SamplingSettings) -> list[Any]:
    factor = pipeline.vae_scale_factor
    shape = (pipeline.unet.config.in_channels, settings.resolution // factor, settings.resolution // factor)
    noise = [
        normals(settings.seed, Stream.SAMPLE, request.seed, np.array([request.noise_key]), shape)[0]
        for request in batch
    ]
    latents = torch.from_numpy(np.stack(noise)).to(adapter.device)
    generators = [torch.Generator(adapter.device).manual_seed(_eta_seed(settings.seed, request)) for request in batch]
    output = pipeline(
        prompt=[request.prompt for request in batch],
        latents=latents,
        height=settings.resolution,
        width=settings.resolution,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        eta=settings.eta,
        generator=generators,
    )
    return list(output.images)


def _eta_seed(seed: int, request: ImageRequest) -> int:
    return (seed * 1_000_003 + request.noise_key * 10_007 + request.seed) % 2**63


def _write_png(image: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=HIDDEN, suffix=".png", dir=path.parent)
    os.close(descriptor)
    try:
        with explained(path):
            image.save(name, format="PNG")
            os.chmod(name, 0o644)
            os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
