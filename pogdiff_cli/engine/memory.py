"""Running out of memory, said in the settings that would mend it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.config import TrainConfig


@contextlib.contextmanager
def memory_explained(train: TrainConfig) -> Iterator[None]:
    """Turn an out-of-memory failure of the body into advice (exit 5)."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as problem:
        if isinstance(problem, RuntimeError) and not _is_out_of_memory(problem):
            raise
        raise PogdiffError(
            f"Out of memory with train.train_batch_size {train.train_batch_size}.",
            hint=(
                "Halve train.train_batch_size and double train.gradient_accumulation_steps (the same global batch), "
                "or set train.gradient_checkpointing: true, or train.tuning: lora."
            ),
            exit_code=Exit.MEMORY,
        ) from problem


def _is_out_of_memory(problem: RuntimeError) -> bool:
    return isinstance(problem, torch.OutOfMemoryError) or "allocate memory" in str(problem)
