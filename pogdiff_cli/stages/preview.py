"""Validation images during training: some identities, tail first, the same noise at every step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pogdiff_cli.engine.sampler import ImageRequest, Prompts, SamplingSettings, encode_prompts, generate
from pogdiff_cli.models.adapter import Adapter, Guidance
from pogdiff_cli.project.layout import Run
from pogdiff_cli.stages.caption import read_names
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.dataset import Dataset


def previewer(
    context: Context, run: Run, adapter: Adapter, dataset: Dataset
) -> Callable[[int, nn.Module], dict[str, float]] | None:
    """What to call after each step; None where no validation images are asked for."""
    train = context.project.config.train
    every = train.validation_steps
    if every is None:
        return None
    names = _rarest(context, dataset)[: train.validation_identities]
    settings = sampling_settings(context)
    texts = [context.project.config.sample.prompt.format(name=name) for name in names]
    # encoders that are trained read the prompts anew each time
    prompts = None if train.train_text_encoder else encode_prompts(adapter, texts, settings)

    def preview(step: int, denoiser: nn.Module) -> dict[str, float]:
        if step % every == 0:
            folder = run.folder / "validation" / f"step-{step:06d}"
            requests = [
                ImageRequest(prompt=text, noise_key=key, seed=0, path=folder / f"{key:03d}.png")
                for key, text in enumerate(texts)
            ]
            if train.parallel == "fsdp" and context.world.size > 1:
                _generate_sharded(context, adapter, denoiser, requests, prompts)
            else:
                generate(adapter, denoiser, context.world.share(requests), settings, prompts=prompts)
            denoiser.train()
            context.world.together()
        return {}

    return preview


def _generate_sharded(
    context: Context, adapter: Adapter, denoiser: nn.Module, requests: list[ImageRequest], prompts: Prompts | None
) -> None:
    """Every process has to take part in every forward of a sharded model; the main one keeps the images."""
    with tempfile.TemporaryDirectory(prefix="pogdiff-") as spare:
        if not context.world.main:
            requests = [replace(request, path=Path(spare) / request.path.name) for request in requests]
        generate(adapter, denoiser, requests, sampling_settings(context), prompts=prompts)


def _rarest(context: Context, dataset: Dataset) -> list[str]:
    """Names of the trained identities, fewest images first."""
    names, counts = read_names(context), dataset.train_counts()
    trained = [code for code in range(len(counts)) if counts[code]]
    return [names[dataset.records.identity_names[code]] for code in sorted(trained, key=lambda code: counts[code])]


def sampling_settings(context: Context) -> SamplingSettings:
    """The ``sample`` section as the engine wants it."""
    config: Any = context.project.config
    sample = config.sample
    return SamplingSettings(
        seed=config.seed,
        resolution=config.data.resolution,
        num_inference_steps=sample.num_inference_steps,
        guidance=Guidance(guidance_scale=sample.guidance_scale, true_cfg_scale=sample.true_cfg_scale, eta=sample.eta),
        negative_prompt=sample.negative_prompt,
        scheduler=sample.scheduler,
        batch_size=sample.batch_size,
    )
