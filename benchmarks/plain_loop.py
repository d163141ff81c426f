"""A plain diffusers fine-tuning loop, as its text-to-image documentation describes one.

At every step images are decoded and transformed, the VAE and the text encoder run, and one UNet is trained with
AdamW under Accelerate. Where the documentation leaves a choice (EMA, min-SNR weights, schedule, precision), the
choice is the project's, so that both sides do the same work.

    python -m benchmarks.plain_loop PROJECT --steps 20
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel, CLIPTokenizer

from pogdiff_cli.data.captions import read_captions
from pogdiff_cli.models.weights import resolve_pipeline
from pogdiff_cli.project.layout import open_project

if TYPE_CHECKING:
    from pogdiff_cli.project.config import TrainConfig

Pace = Callable[[Iterable[Any], str, int | None], Iterator[Any]]
_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training image and its caption."""

    path: Path
    caption: str


class ImageFolder(Dataset[dict[str, Tensor]]):
    """Decode, resize the shorter side, crop the centre, flip, scale to [-1, 1]; tokenise the caption."""

    def __init__(self, examples: Sequence[Example], tokenizer: Any, resolution: int, *, flip_share: float) -> None:
        self.examples, self.tokenizer = examples, tokenizer
        self.resolution, self.flip_share = resolution, flip_share

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        example = self.examples[index]
        with Image.open(example.path) as file:
            image = file.convert("RGB")
        scale = self.resolution / min(image.size)
        size = [max(self.resolution, round(side * scale)) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        left, top = ((side - self.resolution) // 2 for side in size)
        image = image.crop((left, top, left + self.resolution, top + self.resolution))
        if torch.rand(()) < self.flip_share:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        tokens = self.tokenizer(
            example.caption,
            max_length=self.tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        return {"pixels": pixels.sub(0.5).div(0.5), "tokens": tokens.input_ids[0]}


def read_examples(project: Path) -> list[Example]:
    """The training images of a project, with the captions that ``pogdiff caption`` gave them."""
    opened = open_project(project)
    captions = read_captions(opened.captions)
    return [Example(path=opened.images / name, caption=entry.caption) for name, entry in captions.items()]


def train(
    model: Path,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    resolution: int,
    seed: int,
    cpu: bool,
    pace: Pace,
) -> None:
    """Train for as long as ``pace``, which wraps the iterator of batches, asks for them."""
    if len(examples) < config.train_batch_size:
        raise ValueError(f"{len(examples)} images make no batch of {config.train_batch_size}")
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=cpu)
    torch.manual_seed(seed)
    dtype = _DTYPES[config.mixed_precision]
    given = config.dataloader_num_workers
    workers = given if given is not None else 0 if cpu else 2  # as many as ours has
    noise_scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32).requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=torch.float32).train()
    ema = EMAModel(unet.parameters(), decay=config.ema_decay) if config.use_ema else None
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )
    loader: Any = DataLoader(
        ImageFolder(examples, tokenizer, resolution, flip_share=0.5 if config.random_flip else 0.0),
        shuffle=True,
        drop_last=True,  # every step of both sides has the same number of rows
        batch_size=config.train_batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    schedule: Any = get_scheduler(
        config.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
    )
    unet, optimizer, loader, schedule = accelerator.prepare(unet, optimizer, loader, schedule)
    if ema is not None:
        ema.to(accelerator.device)
    text_encoder.to(accelerator.device, dtype=dtype)
    vae.to(accelerator.device, dtype=dtype)

    for batch in pace(_epochs(loader), "Training plain", config.max_train_steps):
        with torch.no_grad():
            latents = vae.encode(batch["pixels"].to(dtype)).latent_dist.sample() * vae.config.scaling_factor
            hidden = text_encoder(batch["tokens"], return_dict=False)[0]
        noise = torch.randn_like(latents)
        t = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
        noisy = noise_scheduler.add_noise(latents, noise, t)
        v_prediction = noise_scheduler.config.prediction_type == "v_prediction"
        target = noise_scheduler.get_velocity(latents, noise, t) if v_prediction else noise
        predicted = unet(noisy, t, hidden, return_dict=False)[0]
        loss = _loss(predicted, target, noise_scheduler, t, config.snr_gamma)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.step(unet.parameters())
        loss.item()  # the documentation's loop shows the loss at every step


def _loss(predicted: Tensor, target: Tensor, scheduler: Any, t: Tensor, snr_gamma: float | None) -> Tensor:
    if snr_gamma is None:
        return functional.mse_loss(predicted.float(), target.float())
    snr = compute_snr(scheduler, t)
    over = snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr
    weight = snr.clamp(max=snr_gamma) / over
    error = functional.mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)
    return (error * weight).mean()


def _epochs(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def train_project(project: Path, settings: dict[str, Any], *, cpu: bool, pace: Pace) -> None:
    """The loop on a project's images, captions, base model and settings."""
    opened = open_project(project, settings)
    config = opened.config
    train(
        resolve_pipeline(config.pretrained_model_name_or_path, opened.root),
        read_examples(project),
        config.train,
        resolution=config.data.resolution,
        seed=config.seed,
        cpu=cpu,
        pace=pace,
    )


def main() -> None:
    """Time some steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, help="a project whose captions are made")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    arguments = parser.parse_args()

    def pace(items: Iterable[Any], label: str, total: int | None) -> Iterator[Any]:
        del label, total
        started = time.monotonic()
        for step, item in enumerate(items):
            if step == arguments.steps:
                print(f"{arguments.steps / (time.monotonic() - started):.2f} steps a second")
                return
            yield item

    with contextlib.suppress(KeyboardInterrupt):
        train_project(arguments.project, {}, cpu=arguments.cpu or not torch.cuda.is_available(), pace=pace)


if __name__ == "__main__":
    main()
