"""From the draws to the device: micro-batches of every step, drawn ahead, and moved without waiting."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pogdiff_cli.engine.batches import Batches, HostBatch
from pogdiff_cli.engine.terms import Batch
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.project.config import TrainConfig

_LOST_WORKER = re.compile(r"DataLoader worker \(pid[^)]*\)+ (is killed by signal: [\w ]+|exited unexpectedly)")
_TRANSFER = ("log_density", "transfer_draws", "transfer_x0", "transfer_log_density", "transfer_own")


def host_batches(
    batches: Batches, train: TrainConfig, *, first_step: int, device: torch.device
) -> Iterator[list[HostBatch]]:
    """For each step from ``first_step`` on, the batches whose losses add up to the step's."""
    micro = train.gradient_accumulation_steps
    workers = train.dataloader_num_workers
    if workers is None:  # a GPU must not wait for draws
        workers = 2 if device.type == "cuda" else 0
    loader: DataLoader[list[HostBatch]] = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step * micro, train.max_train_steps * micro),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )
    group: list[HostBatch] = []
    for number, batch in enumerate(loader, start=1):
        group.extend(batch)
        if number % micro == 0:
            yield group
            group = []


@contextlib.contextmanager
def lost_workers_explained() -> Iterator[None]:
    """A data worker that is killed raises wherever the training process is, or leaves it with half a message."""
    try:
        yield
    except (RuntimeError, EOFError, OSError) as problem:
        how = _lost(problem)
        if how is None:
            raise
        raise PogdiffError(
            f"A data worker is gone ({how}).",
            hint="SIGKILL is often the system's answer to a lack of memory; train.dataloader_num_workers=0 needs none. "
            "Type the same command again to go on from the last whole checkpoint.",
        ) from problem


def _lost(problem: RuntimeError | EOFError | OSError) -> str | None:
    if isinstance(problem, RuntimeError):
        found = _LOST_WORKER.search(str(problem))
        return None if found is None else found[0]
    # it was sending a tensor: the connection ends, is reset, or its socket is no longer there
    socket = isinstance(problem, FileNotFoundError) and problem.filename is None
    return "it left amid a message" if socket or isinstance(problem, (EOFError, ConnectionError)) else None


def on_device(host: HostBatch, adapter: Adapter, *, snr_gamma: float | None, layout: torch.memory_format) -> Batch:
    """The batch on the adapter's device, with x_t, target and w(t) from its draws."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(adapter.device, non_blocking=True)

    x0, noise, t = move(host.x0), move(host.noise), move(host.t)
    if layout is not torch.contiguous_format:
        x0, noise = x0.contiguous(memory_format=layout), noise.contiguous(memory_format=layout)
    return Batch(
        x0=x0,
        x_t=adapter.add_noise(x0, noise, t),
        noise=noise,
        target=adapter.target(x0, noise, t),
        t=t,
        condition={name: move(tensor) for name, tensor in host.condition.items()},
        weight=adapter.snr_weight(t, snr_gamma) * move(host.loss_weight),
        neighbour=None if host.neighbour is None else {n: move(tensor) for n, tensor in host.neighbour.items()},
        neighbour_rows=move(host.neighbour_rows),
        neighbour_psi=move(host.neighbour_psi),
        alphas_cumprod_t=adapter.alphas_cumprod(t) if host.log_density is not None else None,
        **{name: move(tensor) for name in _TRANSFER if (tensor := getattr(host, name)) is not None},
    )
