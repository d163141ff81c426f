"""The network that is trained, on its devices: loaded, tuned, wrapped; asked for predictions; and kept at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pogdiff_cli.engine.parallel import gathered, refuse_unlike_starts, replicated, shard
from pogdiff_cli.engine.tuning import HALF, base_dtype, prepare
from pogdiff_cli.engine.world import World
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.project.config import TrainConfig


class Network:
    """``denoiser`` is the module itself, ``forward`` what training calls: all processes' wrapper around it."""

    def __init__(self, adapter: Adapter, train: TrainConfig, world: World, *, seed: int) -> None:
        if train.mixed_precision == "fp16" and adapter.device.type != "cuda":
            raise PogdiffError(
                "train.mixed_precision fp16 needs a GPU.", hint="Use bf16 or no on the CPU.", exit_code=Exit.USAGE
            )
        self.adapter, self.train, self.world, self.seed = adapter, train, world, seed
        self.dtype = base_dtype(train, adapter.device)
        self.denoiser: Any = adapter.load_denoiser(dtype=self.dtype).train()
        with torch.random.fork_rng(devices=[]):  # a LoRA's start is drawn: the same in every process and attempt
            torch.manual_seed(seed)
            prepare(self.denoiser, train, adapter.lora_targets)
        # a sharded parameter has to be contiguous
        channels_last = train.channels_last and (train.parallel == "ddp" or world.size == 1)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.denoiser.to(memory_format=self.layout)
        shard(self.denoiser, world, train.parallel)
        self.trainable = {name: p for name, p in self.denoiser.named_parameters() if p.requires_grad}
        refuse_unlike_starts(self.trainable, world)
        compiled: Any = torch.compile(self.denoiser) if train.compile else self.denoiser
        self.forward: Any = replicated(compiled, world, train.parallel)

    def predict(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        """The native prediction, float32; through all processes' wrapper."""
        return self.adapter.predict(self.forward, x_t, t, condition).float()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What ``train.mixed_precision`` means around a forward."""
        dtype = HALF.get(self.train.mixed_precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.adapter.device.type, dtype=dtype)

    def final(self, kept: Mapping[str, Tensor]) -> nn.Module | None:
        """The denoiser with the weights ``kept``. None but in the main process."""
        if self.train.parallel == "ddp" or self.world.size == 1:
            return _with(self.denoiser, kept).eval() if self.world.main else None
        full = gathered(kept, self.world)
        if not self.world.main:
            return None
        fresh: Any = self.adapter.load_denoiser(dtype=self.dtype)
        prepare(fresh, self.train, self.adapter.lora_targets)
        return _with(fresh, full).eval()


def _with(denoiser: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if name in values:
                parameter.copy_(values[name])
    return denoiser
