"""A network whose weights are in half precision, for callers that work in float32."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn


def autocast_forward(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Every forward of ``network`` computes in ``dtype`` and returns float32.

    Its half weights meet float32 inputs, and float32 weights of a LoRA: autocast brings them together wherever the
    network is called, in training, by a sampling pipeline, or by both.
    """
    inner = network.forward

    @functools.wraps(inner)
    def forward(*arguments: Any, **named: Any) -> Any:
        with torch.autocast(device.type, dtype=dtype):
            result = inner(*arguments, **named)
        if isinstance(result, tuple):
            return tuple(part.float() if isinstance(part, Tensor) else part for part in result)
        result.sample = result.sample.float()
        return result

    network.forward = forward
