"""What happened between two logged steps, averaged."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from pogdiff_cli.engine.batches import HostBatch
from pogdiff_cli.engine.world import World


class Window:
    """Sums of what happened since the last logged step; tensors stay on the device until asked for."""

    def __init__(self) -> None:
        self._measured: dict[str, Any] = {}  # of steps whose gradient was finite
        self._facts: dict[str, float] = {}
        self._finite: Any = 0.0
        self._rows = 0
        self._steps = 0
        self._started = time.monotonic()

    def add(self, parts: dict[str, Tensor], micro_batches: list[HostBatch], *, finite: Tensor | float = 1.0) -> None:
        """Take in one optimizer step: its loss parts (0 where it was not ``finite``), and its batches' facts."""
        self._steps += 1
        self._finite = self._finite + finite
        for name, value in parts.items():
            self._measured[name] = self._measured.get(name, 0.0) + value
        for batch in (each for each in micro_batches if each.kind == "data"):
            self._rows += len(batch.rows)
            for name, fact in batch.facts.items():
                self._facts[name] = self._facts.get(name, 0.0) + fact * len(batch.rows)

    def means(self, world: World | None = None) -> dict[str, float]:
        """Means over steps and processes since the window was opened, and the seconds a step took."""
        finite = float(self._finite)
        own = {name: float(total) / finite for name, total in self._measured.items()} if finite else {}
        own |= {name: total / self._rows for name, total in self._facts.items()}
        values = own if world is None or world.size == 1 else _over_processes(own, world)
        return values | {"seconds_per_step": (time.monotonic() - self._started) / max(self._steps, 1)}


def _over_processes(own: dict[str, float], world: World) -> dict[str, float]:
    """The mean of each figure; one that a process does not have (no row with a neighbour, say) counts as 0 there."""
    import torch.distributed as dist

    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, own)
    names = dict.fromkeys(name for each in found for name in each)
    return {name: sum(each.get(name, 0.0) for each in found) / world.size for name in names}
