"""What happened between two logged steps, averaged."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from pogdiff_cli.engine.batches import HostBatch


class Window:
    """Sums of what happened since the last logged step; tensors stay on the device until asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._steps = 0
        self._started = time.monotonic()

    def add(self, parts: dict[str, Tensor], micro_batches: list[HostBatch]) -> None:
        """Take in one optimizer step: its loss parts, and the facts of its micro-batches."""
        self._steps += 1  # counted here: a skipped step has no parts, and facts come once a micro-batch
        for name, value in parts.items():
            self._add(name, value)
        for batch in micro_batches:
            for name, fact in batch.facts.items():
                self._add(name, fact)

    def means(self) -> dict[str, float]:
        """Means since the window was opened, and the seconds a step took."""
        values = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        return values | {"seconds_per_step": (time.monotonic() - self._started) / max(self._steps, 1)}

    def _add(self, name: str, value: Any) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + 1
