"""The autoencoder: a closed-form encoder (PCA of 8x8 patches inside AutoencoderKL) and a trained decoder.

Encoder, exactly linear: z[k] = sum_p W[k, p] (x[p] - mean[p]) over the 64 pixels p of a grey 8x8 patch.
- Every residual branch is zero, so each block is its shortcut.
- A stride-2 convolution with asymmetric padding reads the 2x2 window of its kernel: space to depth.
- GroupNorm becomes a constant gain: two channels of +-C dominate the statistics of each group in use.
- SiLU cancels on mirrored channels: SiLU(x) - SiLU(-x) = x.
The decoder is then a regression on fixed latents.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from .photos import RESOLUTION, WORLD, photograph
from .rate import cosine, set_rate

CHANNELS = (16, 32, 64, 128)
GROUPS = 8
LATENT = 12
GAIN = 50.0  # C over the deviation of the first component; larger = more exactly linear, less precise in bf16
LOG_VARIANCE = -7.0  # the posterior's constant deviation: 0.03, a thirtieth of a latent's


def to_signed(greys: NDArray[np.uint8]) -> torch.Tensor:
    """(n, s, s) grey levels -> (n, 3, s, s) in [-1, 1]."""
    return (torch.from_numpy(greys).float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


def augmented(cache: Path, variants: int, seed: int) -> NDArray[np.uint8]:
    """(20 * 10 * variants, 64, 64): photographs of s1-s20 shifted, scaled, mirrored, with other light."""
    draw = np.random.default_rng(seed)
    out = []
    for person in WORLD:
        for shot in range(1, 11):
            photo = photograph(person, shot, cache)
            for _ in range(variants):
                side = draw.uniform(72, 92)
                left, top = draw.uniform(0, 92 - side), draw.uniform(0, 112 - side)
                box = (left, top, left + side, top + side)
                size = (RESOLUTION, RESOLUTION)
                grey = np.asarray(photo.resize(size, Image.Resampling.LANCZOS, box=box), dtype=np.float64)
                grey = grey * draw.uniform(0.75, 1.2) + draw.uniform(-20, 20)
                grey = grey[:, ::-1] if draw.random() < 0.5 else grey
                out.append(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    return np.stack(out)


def patches(greys: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, 64, 64) grey levels -> (n * 64, 64): 8x8 patches in [-1, 1], pixels in row order."""
    x = greys.astype(np.float64) / 127.5 - 1
    return x.reshape(-1, 8, 8, 8, 8).transpose(0, 1, 3, 2, 4).reshape(-1, 64)


def principal_components(
    greys: NDArray[np.uint8],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """PCA of patches -> mean (64,), components (LATENT, 64) with unit norm, deviations (LATENT,)."""
    x = patches(greys)
    mean = x.mean(0)
    variance, vectors = np.linalg.eigh(np.cov(x - mean, rowvar=False))
    return mean, vectors[:, ::-1][:, :LATENT].T, np.sqrt(variance[::-1][:LATENT])


def build() -> AutoencoderKL:
    """An untrained autoencoder of the base's shape."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=GROUPS,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


@torch.no_grad()
def write_encoder(vae: AutoencoderKL, greys: NDArray[np.uint8]) -> None:
    """Sets the encoder to the PCA of the patches; unit mean variance, channel k scaled by deviation^-1/2."""
    mean, components, deviation = principal_components(greys)
    scale = deviation**-0.5 / np.sqrt(deviation.mean())  # z_k has variance deviation_k / mean deviation
    encoder = vae.encoder
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.zero_()
            module.bias.zero_()
    encoder.conv_in.weight[0, :, 1, 1] = 1 / 3  # the grey level, in channel 0
    for index, block in enumerate(encoder.down_blocks):
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None:
            carried = min(shortcut.weight.shape[:2])
            shortcut.weight[:carried, :carried, 0, 0] = torch.eye(carried)
        if index < 2:  # space to depth: channel = row, column, channel below
            below = 4**index
            kernel = block.downsamplers[0].conv.weight
            for row in range(2):
                for column in range(2):
                    for source in range(below):
                        kernel[(2 * row + column) * below + source, source, row, column] = 1
    project(encoder, components, mean, deviation)
    readout(vae, scale, deviation)


def pixel(row4: int, column4: int, channel: int) -> int:
    """Index in the 8x8 patch of channel (2x2 of 2x2) at row4, column4 of the last stride-2 window."""
    outer, inner = divmod(channel, 4)
    row = row4 * 4 + (outer // 2) * 2 + inner // 2
    column = column4 * 4 + (outer % 2) * 2 + inner % 2
    return row * 8 + column


def places() -> list[tuple[int, int]]:
    """Channels (plus, minus) of each latent after the last downsampler; groups end in two constant channels."""
    per_group = CHANNELS[-1] // GROUPS
    pairs = (per_group - 2) // 2
    return [
        ((k // pairs) * per_group + 2 * (k % pairs), (k // pairs) * per_group + 2 * (k % pairs) + 1)
        for k in range(LATENT)
    ]


def project(
    encoder: nn.Module, components: NDArray[np.float64], mean: NDArray[np.float64], deviation: NDArray[np.float64]
) -> None:
    """The last stride-2 convolution computes +y and -y for every component; its bias adds -+W mean and +-C."""
    convolution = encoder.down_blocks[2].downsamplers[0].conv
    per_group, constant = CHANNELS[-1] // GROUPS, GAIN * deviation[0]
    for k, (plus, minus) in enumerate(places()):
        offset = float(components[k] @ mean)
        for row in range(2):
            for column in range(2):
                for channel in range(16):
                    weight = float(components[k, pixel(row, column, channel)])
                    convolution.weight[plus, channel, row, column] = weight
                    convolution.weight[minus, channel, row, column] = -weight
        convolution.bias[plus], convolution.bias[minus] = -offset, offset
        last = (plus // per_group + 1) * per_group
        convolution.bias[last - 2], convolution.bias[last - 1] = constant, -constant


def readout(vae: AutoencoderKL, scale: NDArray[np.float64], deviation: NDArray[np.float64]) -> None:
    """conv_out undoes the norm's gain: GroupNorm divides a group by sqrt(2 (C^2 + sum of y^2) / channels)."""
    per_group, constant = CHANNELS[-1] // GROUPS, GAIN * deviation[0]
    for k, (plus, minus) in enumerate(places()):
        group = plus // per_group
        power = sum(deviation[j] ** 2 for j, (other, _) in enumerate(places()) if other // per_group == group)
        gain = np.sqrt(2 * (constant**2 + power) / per_group)
        vae.encoder.conv_out.weight[k, plus, 1, 1] = float(gain * scale[k])
        vae.encoder.conv_out.weight[k, minus, 1, 1] = float(-gain * scale[k])
    vae.encoder.conv_out.bias[LATENT:] = LOG_VARIANCE
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        convolution.weight.copy_(torch.eye(convolution.weight.shape[0])[:, :, None, None])
        convolution.bias.zero_()


@torch.no_grad()
def encode(vae: AutoencoderKL, greys: NDArray[np.uint8], batch: int = 256) -> torch.Tensor:
    """(n, 64, 64) grey levels -> (n, LATENT, 8, 8) posterior means."""
    return torch.cat(
        [vae.encode(to_signed(greys[i : i + batch])).latent_dist.mean for i in range(0, len(greys), batch)]
    )


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor, batch: int = 128) -> NDArray[np.uint8]:
    """(n, LATENT, 8, 8) -> (n, 64, 64) grey levels."""
    pictures = torch.cat([vae.decode(z).sample.float().mean(1) for z in latents.split(batch)])
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def psnr(truth: NDArray[np.uint8], guess: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB, mean over pictures of 10 log10(255^2 / mse)."""
    error = ((truth.astype(np.float64) - guess) ** 2).mean((1, 2))
    return float((10 * np.log10(255**2 / error)).mean())


def train_decoder(
    vae: AutoencoderKL,
    greys: NDArray[np.uint8],
    weights: NDArray[np.float64],
    unseen: NDArray[np.uint8],
    *,
    steps: int,
    batch: int,
    rate: float,
    noise: float,
    seed: int,
    folder: Path,
) -> None:
    """Least squares from latents with a little noise to pictures; resumes from folder/decoder.pt."""
    torch.manual_seed(seed)
    latents = encode(vae, greys)
    targets, probe = torch.from_numpy(greys), encode(vae, unseen)
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder])
    final = vae.decoder.conv_out
    with torch.no_grad():  # three equal channels: the world is grey
        final.weight.copy_(final.weight.mean(0, keepdim=True).expand_as(final.weight))
        final.bias.zero_()
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=rate, weight_decay=1e-4)
    average = {key: value.clone() for key, value in decoder.state_dict().items()}
    chances, start, state = torch.from_numpy(weights), 0, folder / "decoder.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        decoder.load_state_dict(saved["decoder"])
        optimiser.load_state_dict(saved["optimiser"])
        average, start = saved["average"], saved["step"]
    began, running = time.monotonic(), 0.0
    for step in range(start, steps):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.multinomial(chances, batch, replacement=True, generator=draw)
        z = latents[rows] + noise * torch.rand(batch, 1, 1, 1, generator=draw) * torch.randn(
            latents[rows].shape, generator=draw
        )
        truth = targets[rows].float()[:, None] / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            guess = vae.decode(z).sample
        loss = ((guess.float() - truth) ** 2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        set_rate(optimiser, cosine(step, steps, rate))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        decay = min(0.998, (1 + step) / (10 + step))
        for key, value in decoder.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        running = loss.item() if step == start else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            current = {key: value.clone() for key, value in decoder.state_dict().items()}
            decoder.load_state_dict(average)
            score = psnr(unseen, decode(vae, probe))
            decoder.load_state_dict(current)
            saved = {"decoder": current, "optimiser": optimiser.state_dict()}
            torch.save(saved | {"average": average, "step": step + 1}, state)
            line = {
                "stage": "vae",
                "step": step + 1,
                "loss": round(running, 6),
                "psnr_unseen": round(score, 3),
                "seconds": round(time.monotonic() - began, 1),
            }
            with (folder / "training_log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
    decoder.load_state_dict(average)
