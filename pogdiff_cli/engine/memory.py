"""Running out of memory, said in the settings that would mend it."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from pogdiff_cli.engine.batches import HostBatch
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.config import TrainConfig

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError, RuntimeError)  # the last only where it says so
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
#: Fields of a host batch that do not have one row for each of its rows.
_OTHER_ROWS = {"kind", "facts", "neighbour", "neighbour_rows", "neighbour_psi", "transfer_x0", "transfer_log_density"}


def in_pieces(batch: HostBatch, pieces: int) -> list[HostBatch]:
    """The same rows in ``pieces`` batches, or in as many as there are rows; draws, terms and sums stay as they are."""
    rows = len(batch.rows)
    if pieces == 1 or rows == 1:
        return [batch]
    size = -(-rows // pieces)
    return [_piece(batch, start, min(start + size, rows)) for start in range(0, rows, size)]


def _piece(batch: HostBatch, start: int, stop: int) -> HostBatch:
    own: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name in _OTHER_ROWS or value is None:
            continue
        own[field.name] = {k: v[start:stop] for k, v in value.items()} if isinstance(value, dict) else value[start:stop]
    here = (batch.neighbour_rows >= start) & (batch.neighbour_rows < stop)
    neighbour = None
    if batch.neighbour is not None and bool(here.any()):
        neighbour = {name: tensor[here] for name, tensor in batch.neighbour.items()}
    return replace(
        batch,
        **own,
        neighbour=neighbour,
        neighbour_rows=batch.neighbour_rows[here] - start,
        neighbour_psi=batch.neighbour_psi[here],
    )


def keep_freed_memory() -> None:
    """Linux, on the CPU: let the allocator keep what a step frees, for the next step asks for it again.

    By default glibc hands it back, and the system has to clear every page anew.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 * 2**20)


@contextlib.contextmanager
def memory_explained(train: TrainConfig) -> Iterator[None]:
    """Turn an out-of-memory failure of the body into advice (exit 5)."""
    try:
        yield
    except OUT_OF_MEMORY as problem:
        if not is_out_of_memory(problem):
            raise
        raise PogdiffError(
            f"Out of memory with train.train_batch_size {train.train_batch_size}.",
            hint=(
                "Halve train.train_batch_size and double train.gradient_accumulation_steps (the same global batch), "
                "or set train.on_out_of_memory: halve, train.gradient_checkpointing: true, or train.tuning: lora."
            ),
            exit_code=Exit.MEMORY,
        ) from problem


def is_out_of_memory(problem: BaseException) -> bool:
    """True for what the allocators of the CPU and of CUDA raise."""
    return isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(problem)


def forget_peak(device: torch.device) -> None:
    """Let ``peak`` speak of what comes from now on (on a CPU: where the system can, which Linux does)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak(device: torch.device) -> int:
    """The most memory held at once, in bytes: torch's own on a GPU, this process's resident memory on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
