"""The networks that are trained, on their devices: loaded, tuned, wrapped; asked for predictions; kept at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pogdiff_cli.engine.parallel import gathered, refuse_unlike_starts, replicated, shard
from pogdiff_cli.engine.text_tuning import trained_text_encoders
from pogdiff_cli.engine.tuning import HALF, base_dtype, prepare
from pogdiff_cli.engine.world import World
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.project.config import TrainConfig


class Reading(nn.Module):
    """A denoiser behind text encoders: a condition whose texts are tokens is read and used in one forward.

    One module, so that one wrapper averages the gradients of both.
    """

    def __init__(self, adapter: Adapter, denoiser: nn.Module, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.adapter, self.denoiser, self.encoders = adapter, denoiser, nn.ModuleDict(encoders)

    def forward(self, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The native prediction; gradients flow into the encoders."""
        read = self.adapter.conditioned(condition, dict(self.encoders.items()))
        return self.adapter.predict(self.denoiser, x_t, t, read)


class Network:
    """``denoiser`` is the module itself, ``forward`` what training calls: all processes' wrapper around it.

    ``encoders``: the text encoders whose LoRA is trained along; mostly none. From here on the adapter reads with them.
    """

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
            self.encoders = trained_text_encoders(adapter, train)
        self._refuse_sharded_encoders()
        adapter.use_text_encoders(self.encoders)
        # a sharded parameter has to be contiguous
        channels_last = train.channels_last and (train.parallel == "ddp" or world.size == 1)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.denoiser.to(memory_format=self.layout)
        shard(self.denoiser, world, train.parallel)
        self.of_text = {
            f"{component}.{name}": p
            for component, encoder in self.encoders.items()
            for name, p in encoder.named_parameters()
            if p.requires_grad
        }
        self.trainable = {name: p for name, p in self.denoiser.named_parameters() if p.requires_grad} | self.of_text
        refuse_unlike_starts(self.trainable, world)
        compiled: Any = torch.compile(self.denoiser) if train.compile else self.denoiser
        whole = Reading(adapter, compiled, self.encoders) if self.encoders else compiled
        self.forward: Any = replicated(whole, world, train.parallel)

    def _refuse_sharded_encoders(self) -> None:
        if self.encoders and self.train.parallel == "fsdp" and self.world.size > 1:
            raise PogdiffError(
                "train.train_text_encoder does not go with train.parallel fsdp.",
                hint="Set train.parallel: ddp, or train.train_text_encoder: false.",
                exit_code=Exit.USAGE,
            )

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What is trained, as optimizers take it: text encoders may have a learning rate of their own."""
        denoiser = [p for name, p in self.trainable.items() if name not in self.of_text]
        text = {"params": list(self.of_text.values()), "lr": self.train.text_encoder_lr or self.train.learning_rate}
        return [{"params": denoiser}, text] if self.of_text else [{"params": denoiser}]

    def predict(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        """The native prediction, float32; through all processes' wrapper."""
        if self.encoders:
            return cast(Tensor, self.forward(x_t, t, condition)).float()
        return self.adapter.predict(self.forward, x_t, t, condition).float()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What ``train.mixed_precision`` means around a forward."""
        dtype = HALF.get(self.train.mixed_precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.adapter.device.type, dtype=dtype)

    def final(self, kept: Mapping[str, Tensor]) -> nn.Module | None:
        """The denoiser with the weights ``kept``, and ``encoders`` with theirs. None but in the main process."""
        if self.train.parallel == "ddp" or self.world.size == 1:
            with torch.no_grad():
                for name, parameter in self.trainable.items():
                    parameter.copy_(kept[name])
            return cast(nn.Module, self.denoiser.eval()) if self.world.main else None
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
