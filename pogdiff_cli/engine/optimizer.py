"""The optimizer, and a step that leaves itself out where a gradient is not finite, without asking the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pogdiff_cli.engine.parallel import whole
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.config import TrainConfig

MAX_NON_FINITE = 5


def make_optimizer(
    parameters: Sequence[Any], train: TrainConfig, *, sharded: Literal["whole", "sharded"] = "whole"
) -> torch.optim.Optimizer:
    """AdamW, fused; or bitsandbytes' 8-bit AdamW, whose state takes a quarter of the memory.

    ``parameters``: these, or groups of them with a learning rate of their own.
    """
    betas = (train.adam_beta1, train.adam_beta2)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=train.learning_rate,
            betas=betas,
            eps=train.adam_epsilon,
            weight_decay=train.adam_weight_decay,
            fused=True,
        )
    if sharded == "sharded":
        raise PogdiffError(
            "train.optimizer adamw8bit does not go with train.parallel fsdp: its blocks of states cannot be split.",
            hint="Set train.parallel: ddp, or train.optimizer: adamw.",
            exit_code=Exit.USAGE,
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as missing:
        raise PogdiffError(
            "train.optimizer adamw8bit needs bitsandbytes, which is not installed.",
            hint="pip install bitsandbytes, or set train.optimizer: adamw.",
            exit_code=Exit.USAGE,
        ) from missing
    return AdamW8bit(  # type: ignore[no-any-return]
        parameters, lr=train.learning_rate, betas=betas, eps=train.adam_epsilon, weight_decay=train.adam_weight_decay
    )


class GuardedStep:
    """Clip, then step only where the gradient's norm is finite; the count of what was left out stays on the device.

    A fused optimizer takes the verdict as a tensor (``found_inf``, made for loss scaling): weights and state of a
    step that is left out keep their bits, and nothing waits for the device. Other optimizers have to be told by
    the host.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, max_norm: float, device: torch.device
    ) -> None:
        self.optimizer, self.scaler, self.max_norm = optimizer, scaler, max_norm
        self._fused = bool(optimizer.defaults.get("fused"))
        self._zero = torch.zeros((), device=device)
        self.skipped = self._zero.clone()
        self._in_a_row = self._zero.clone()
        self._longest = self._zero.clone()

    def __call__(self, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, Tensor]:
        """Take the step; (norm before clipping, whether it is finite), both on the device."""
        self.scaler.unscale_(self.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(parameters, self.max_norm)).detach()
        finite = torch.isfinite(norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self._fused:
            guarded: Any = self.optimizer
            guarded.grad_scale, guarded.found_inf = None, (~finite).float()
            self.optimizer.step()
        elif bool(finite):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += ~finite
        self._in_a_row = torch.where(finite, self._zero, self._in_a_row + 1)
        self._longest = torch.maximum(self._longest, self._in_a_row)
        return norm, finite

    def refuse_many_in_a_row(self, step: int) -> None:
        """Give up after MAX_NON_FINITE steps in a row; this waits for the device."""
        if int(self._longest) >= MAX_NON_FINITE:
            raise PogdiffError(
                f"The loss or its gradient was not finite {MAX_NON_FINITE} times in a row, up to step {step}.",
                hint="Lower train.learning_rate, or set train.mixed_precision to bf16 or no.",
                exit_code=Exit.NON_FINITE,
            )
