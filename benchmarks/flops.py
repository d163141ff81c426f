"""Work and peak: the floating-point operations of a training step, and how many a device does at most."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import Architecture, Size, build

#: Published dense bfloat16 matrix peaks, operations a second, by part of the device's name; the longest match counts.
PUBLISHED = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def published_peak(device_name: str) -> float | None:
    """The manufacturer's figure; None for a device that the table does not name."""
    named = [key for key in PUBLISHED if key in device_name]
    return PUBLISHED[max(named, key=len)] if named else None


def measured_peak(device: torch.device, *, n: int, repeats: int = 20) -> float:
    """Operations a second of the best of some n x n x n bfloat16 matrix products."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        for _ in range(4):
            a @ b
        _wait(device)
        best = min(best, (time.perf_counter() - started) / 4)
    return 2.0 * n**3 / best


def step_flops(
    architecture: Architecture, size: Size, *, batch: int, latent: int, tuning: Literal["full", "lora"]
) -> int:
    """Operations of the denoiser's forward and backward, counted on tensors without content.

    What gradient checkpointing computes again is not counted, nor is the optimizer. With ``lora`` the gradient
    flows through the frozen weights and not into them; LoRA's own few products are left out.
    """
    with torch.device("meta"):
        denoiser = build(architecture, size)
    denoiser.to("meta").requires_grad_(tuning == "full")
    given = denoiser_inputs(denoiser, batch=batch, latent=latent, tokens=architecture.tokens)
    counter = FlopCounterMode(display=False)
    with counter:
        denoiser(**given, return_dict=False)[0].sum().backward()
    return int(counter.get_total_flops())


def denoiser_inputs(denoiser: Any, *, batch: int, latent: int, tokens: int) -> dict[str, Any]:
    """Arguments of a forward at ``latent`` x ``latent``, on the meta device."""
    config = denoiser.config

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta", requires_grad=True)

    t = torch.zeros(batch, device="meta")
    if "cross_attention_dim" in config:
        given = {"sample": empty(batch, config.in_channels, latent, latent), "timestep": t}
        given["encoder_hidden_states"] = empty(batch, tokens, config.cross_attention_dim)
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            given["added_cond_kwargs"] = {"text_embeds": empty(batch, pooled), "time_ids": empty(batch, 6)}
        return given
    given = {
        "timestep": t,
        "encoder_hidden_states": empty(batch, tokens, config.joint_attention_dim),
        "pooled_projections": empty(batch, config.pooled_projection_dim),
    }
    if "caption_projection_dim" in config:
        return given | {"hidden_states": empty(batch, config.in_channels, latent, latent)}
    pixels = (latent // 2) ** 2
    return given | {
        "hidden_states": empty(batch, pixels, config.in_channels),
        "guidance": torch.zeros(batch, device="meta"),
        "txt_ids": torch.zeros(tokens, 3, device="meta"),
        "img_ids": torch.zeros(pixels, 3, device="meta"),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
