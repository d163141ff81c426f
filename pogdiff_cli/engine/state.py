"""What a run needs to go on, taken from the living objects and put back into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from pogdiff_cli.engine.checkpoint import Snapshot, flatten_optimizer, restore_optimizer
from pogdiff_cli.engine.parallel import gathered, like
from pogdiff_cli.engine.world import World


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """The parts of a training run that change from step to step."""

    trainable: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler
    ema: EMAModel | None

    def snapshot(self, facts: Mapping[str, Any], world: World) -> Snapshot:
        """All of it on the host of the main process (the others take part and get no tensors)."""
        state = {**facts, "scheduler": self.schedule.state_dict(), "scaler": self.scaler.state_dict()}
        ema: dict[str, Tensor] = {}
        if self.ema is not None:
            shadow = self.ema.state_dict()
            ema = dict(zip(self.trainable, shadow.pop("shadow_params"), strict=True))
            state["ema"] = {key: value for key, value in shadow.items() if isinstance(value, (int, float, bool))}
        return Snapshot(
            weights=gathered(self.trainable, world),
            optimizer=gathered(flatten_optimizer(self.optimizer, list(self.trainable)), world),
            ema=gathered(ema, world),
            state=state,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Every process reads the whole and keeps its part."""
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(like(snapshot.weights[name], parameter))
        restore_optimizer(self.optimizer, list(self.trainable), snapshot.optimizer)
        self.schedule.load_state_dict(snapshot.state["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate  # the schedule sets it at its next step only
        self.scaler.load_state_dict(snapshot.state["scaler"])
        if self.ema is not None:
            shadow = [like(snapshot.ema[name], parameter) for name, parameter in self.trainable.items()]
            self.ema.load_state_dict(self.ema.state_dict() | snapshot.state["ema"] | {"shadow_params": shadow})
