"""The denoiser and its text encoder: v-prediction on the closed-form latents, min-SNR weights, one loss.

L = w(t) mean|v_theta(x_t, t, y) - v|^2,   v = sqrt(abar) eps - sqrt(1 - abar) x0,   w = min(snr, 5) / (snr + 1)
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from . import photos, text
from .photos import RESOLUTION
from .rate import cosine, set_rate

SNR_GAMMA = 5.0
BANK = 40  # captions of one photograph


def build_unet(latent_channels: int, text_width: int) -> UNet2DConditionModel:
    """About 6 M parameters; text enters at 4x4 only: a full-resolution cross-attention doubles the time of a step."""
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(80, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels with v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def jittered(cache: Path, variants: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int_], NDArray[np.bool_]]:
    """Photographs of s1-s20 -> pictures (n, 64, 64), photograph index (n,) of 0..199, mirrored (n,).

    Each photograph as it is and shifted or scaled by a pixel or two, both also mirrored.
    """
    draw = np.random.default_rng(seed)
    left, top, right, bottom = photos.SETTINGS["crop_box"]
    pictures, index, flips = [], [], []
    for row in range(200):
        photo = photos.photograph(1 + row // 10, 1 + row % 10, cache)
        for variant in range(variants):
            box = np.array([left, top, right, bottom], dtype=float)
            if variant:
                side = draw.uniform(86, 92)
                x, y = draw.uniform(0, 92 - side), top + draw.uniform(-3, 95 - side - 1)
                box = np.array([x, min(y, 112 - side), x + side, min(y, 112 - side) + side])
            size = (RESOLUTION, RESOLUTION)
            grey = np.asarray(photo.resize(size, Image.Resampling.LANCZOS, box=tuple(box)), dtype=np.uint8)
            pictures += [grey, grey[:, ::-1]]
            index += [row, row]
            flips += [False, True]
    return np.stack(pictures), np.array(index), np.array(flips)


@dataclass(frozen=True, kw_only=True)
class World:
    """Latents (n, c, 8, 8) of both kinds, and for each the name and what can be said."""

    real: torch.Tensor
    real_as_is: torch.Tensor  # (n,) weights of drawing: untouched photographs more often
    records: list[dict[str, str]]  # per real latent, mirrored where the picture is
    made: torch.Tensor
    real_names: list[str]  # per real latent
    made_names: list[str]  # per made latent

    def caption(self, row: int, kind: str, draw: random.Random) -> str:
        """One of BANK captions of a latent; few enough that their states fit in memory."""
        if kind == "real":
            record = self.records[row]
            mine = random.Random(f"{record['file_name']} {record['pose']} {draw.randrange(BANK)}")
            return text.photo_caption(self.real_names[row], record, mine)
        return text.rendered_caption(self.made_names[row], draw)


def make_world(
    real: torch.Tensor, index: NDArray[np.int_], flips: NDArray[np.bool_], made: torch.Tensor, shots: int
) -> World:
    """Joins latents with names: s1-s20 take the first twenty world names, pseudo-people the next."""
    names, records = text.world_names(), text.photo_records()
    told = [text.mirrored(records[i]) if flip else records[i] for i, flip in zip(index, flips, strict=True)]
    variants = len(index) // 200
    weight = torch.ones(len(index))
    weight[torch.arange(len(index)) % variants < 2] = max(1.0, variants / 2 - 1)  # half the draws: as they are
    return World(
        real=real,
        real_as_is=weight,
        records=told,
        made=made,
        real_names=[names[i // 10] for i in index],
        made_names=[names[20 + row // shots] for row in range(len(made))],
    )


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """(n, 77) token ids, padded as the pipeline pads."""
    return tokenizer(
        captions, padding="max_length", max_length=text.LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


class Captions:
    """Draws captions and their hidden states; once the text encoder is frozen, from a store that fills as they come."""

    def __init__(self, world: World, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, dropout: float) -> None:
        self.world, self.tokenizer, self.encoder, self.dropout = world, tokenizer, encoder, dropout
        self.store: dict[str, torch.Tensor] = {}

    def draw(self, rows: list[int], kinds: list[str], draw: random.Random) -> list[str]:
        """One caption a row, empty with probability `dropout`."""
        fresh = [self.world.caption(row, kind, draw) for row, kind in zip(rows, kinds, strict=True)]
        return ["" if draw.random() < self.dropout else caption for caption in fresh]

    def states(self, captions: list[str]) -> torch.Tensor:
        """(n, 77, width) hidden states; equal captions are encoded once."""
        unique = list(dict.fromkeys(captions))
        place = {caption: i for i, caption in enumerate(unique)}
        states = self.encoder(tokens(self.tokenizer, unique)).last_hidden_state
        return states[[place[caption] for caption in captions]]

    @torch.no_grad()
    def frozen_states(self, captions: list[str]) -> torch.Tensor:
        """The same, from the store."""
        missing = list(dict.fromkeys(caption for caption in captions if caption not in self.store))
        if missing:
            for caption, state in zip(missing, self.states(missing), strict=True):
                self.store[caption] = state.to(torch.float16)
        return torch.stack([self.store[caption] for caption in captions]).float()


class Average:
    """Exponential moving average of the parameters of some modules."""

    def __init__(self, modules: nn.ModuleList, decay: float) -> None:
        self.decay = decay
        self.values = {key: value.detach().clone() for key, value in modules.state_dict().items()}

    @torch.no_grad()
    def update(self, modules: nn.ModuleList, step: int) -> None:
        """avg <- d avg + (1 - d) value, with a shorter memory at the start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in modules.state_dict().items():
            if value.is_floating_point():
                self.values[key].lerp_(value, 1 - decay)
            else:
                self.values[key].copy_(value)


def train(
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    world: World,
    *,
    steps: int,
    joint_steps: int,
    batch: int,
    real_share: float,
    rate: float,
    decay: float,
    dropout: float,
    seed: int,
    folder: Path,
) -> None:
    """Both networks for joint_steps, then the denoiser alone. Leaves the averages in the modules. Resumable."""
    modules, captions = nn.ModuleList([unet, encoder]), Captions(world, tokenizer, encoder, dropout)
    optimiser = torch.optim.AdamW(modules.parameters(), lr=rate, weight_decay=1e-2, betas=(0.9, 0.99), fused=True)
    average, start, state = Average(modules, decay), 0, folder / "denoiser.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        modules.load_state_dict(saved["modules"])
        optimiser.load_state_dict(saved["optimiser"])
        average.values, start = saved["average"], saved["step"]
    alphas = build_scheduler().alphas_cumprod
    reals = round(batch * real_share)
    began, running = time.monotonic(), None
    for step in range(start, steps):
        if step >= joint_steps and encoder.training:
            encoder.load_state_dict({key[2:]: value for key, value in average.values.items() if key.startswith("1.")})
            encoder.eval().requires_grad_(False)
        torch_draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        draw = random.Random(seed * 1_000_003 + step)
        real = torch.multinomial(world.real_as_is, reals, replacement=True, generator=torch_draw)
        made = torch.randint(len(world.made), (batch - reals,), generator=torch_draw)
        said = captions.draw(real.tolist() + made.tolist(), ["real"] * reals + ["made"] * (batch - reals), draw)
        x0 = torch.cat([world.real[real], world.made[made]])
        noise = torch.randn(x0.shape, generator=torch_draw)
        t = torch.randint(1000, (batch,), generator=torch_draw)
        abar = alphas[t].view(-1, 1, 1, 1)
        xt, v = abar.sqrt() * x0 + (1 - abar).sqrt() * noise, abar.sqrt() * noise - (1 - abar).sqrt() * x0
        states = captions.states(said) if encoder.training else captions.frozen_states(said)
        with torch.autocast("cpu", torch.bfloat16):  # on two cores: 0.16 s against 0.26; the text encoder gains nothing
            guess = unet(xt, t, encoder_hidden_states=states).sample
        snr = abar.flatten() / (1 - abar.flatten())
        weight = snr.clamp(max=SNR_GAMMA) / (snr + 1)
        loss = (weight * ((guess.float() - v) ** 2).mean((1, 2, 3))).mean()
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in modules.parameters() if p.grad is not None], 1.0)
        set_rate(optimiser, cosine(step, steps, rate))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(modules, step)
        running = loss.item() if running is None else 0.995 * running + 0.005 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            parts = {"modules": modules.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save(parts | {"average": average.values, "step": step + 1}, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
            line = {
                "stage": "unet",
                "step": step + 1,
                "loss": round(running, 6),
                "text_encoder": "trained" if encoder.training else "frozen",
                "seconds": round(time.monotonic() - began, 1),
            }
            with (folder / "training_log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
    modules.load_state_dict(average.values)
