"""The learning rate of both trainings: a short rise, then a half cosine to nearly nothing."""

from __future__ import annotations

import math

import torch


def cosine(step: int, steps: int, peak: float, rise: float = 0.04) -> float:
    """rate(step): linear from 0 to peak over rise * steps, then peak (1 + cos) / 2, at least a hundredth of peak."""
    warm = max(1.0, rise * steps)
    if step < warm:
        return peak * (step + 1) / warm
    along = (step - warm) / max(1.0, steps - warm)
    return peak * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, along))))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group the rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
