"""Synthetic faces: pseudo-people drawn from a DCGAN, as grey pictures.

A pseudo-person is a point z_id; its pictures are z = sqrt(1 - s^2) z_id + s e with e ~ N(0, I) and s = 0.35.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .assets import member

SPREAD = 0.35


def generator(cache: Path) -> nn.Module:
    """The DCGAN generator: z (n, 100, 1, 1) -> RGB (n, 3, 64, 64) in [-1, 1]."""
    width = 64
    layers: list[nn.Module] = []
    channels = (100, width * 8, width * 4, width * 2, width)
    for index, (a, b) in enumerate(pairwise(channels)):
        stride, padding = (1, 0) if index == 0 else (2, 1)
        layers += [nn.ConvTranspose2d(a, b, 4, stride, padding, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    layers += [nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()]
    network = nn.Sequential(*layers)
    saved = torch.load(member("synthetic_faces", cache), map_location="cpu", weights_only=True)["netG_state_dict"]
    network.load_state_dict({key.removeprefix("main."): value for key, value in saved.items()})
    return network.eval()


def plausible(rgb: torch.Tensor) -> bool:
    """Whether a person's pictures (n, 3, 64, 64) are skin-coloured in the middle; the GAN's failures are not."""
    red, green, blue = rgb[:, :, 20:44, 20:44].mean((0, 2, 3)).tolist()
    return 0.02 < red - green < 0.45 and -0.02 < green - blue < 0.35 and red > -0.35


@torch.no_grad()
def people(count: int, shots: int, seed: int, cache: Path) -> NDArray[np.uint8]:
    """(count, shots, 64, 64) grey levels of pseudo-people; implausible ones are drawn again."""
    network, draw = generator(cache), torch.Generator().manual_seed(seed)
    kept: list[NDArray[np.uint8]] = []
    while len(kept) < count:
        centre = torch.randn(1, 100, 1, 1, generator=draw)
        noise = torch.randn(shots, 100, 1, 1, generator=draw)
        rgb = network((1 - SPREAD**2) ** 0.5 * centre + SPREAD * noise)
        if plausible(rgb):
            luma = (rgb * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
            kept.append(((luma + 1) * 127.5).round().clamp(0, 255).byte().numpy())
    return np.stack(kept)
