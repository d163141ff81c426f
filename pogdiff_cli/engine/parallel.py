"""One model on several devices: replicated (DDP) or sharded (FSDP2), and its tensors whole again for a checkpoint.

Torch's own wrappers, without a second library around them: precision, accumulation and clipping are the trainer's,
and each exists once.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pogdiff_cli.engine.world import RankLostError, World
from pogdiff_cli.errors import Exit, PogdiffError

Strategy = Literal["ddp", "fsdp"]


def shard(denoiser: nn.Module, world: World, strategy: Strategy) -> None:
    """With ``fsdp``, split parameters over the processes, block by block. Before the optimizer is made."""
    if strategy == "ddp" or world.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(denoiser.parameters()).device
    mesh = init_device_mesh(device.type, (world.size,))
    blocks = set(getattr(denoiser, "_no_split_modules", None) or ())
    for module in reversed(list(denoiser.modules())):  # inner blocks first: an outer one takes what is left
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)


def replicated(forward: nn.Module, world: World, strategy: Strategy) -> nn.Module:
    """With ``ddp``, the module whose backward averages gradients over the processes."""
    if strategy == "fsdp" or world.size == 1:
        return forward
    device = next(forward.parameters()).device
    wrapper = nn.parallel.DistributedDataParallel
    # no statistics in buffers, and every process has loaded the same; processes may differ in their forwards, too
    known = inspect.signature(wrapper).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    devices = [device.index] if device.type == "cuda" else None
    return wrapper(forward, device_ids=devices, gradient_as_bucket_view=True, **{buffers: False})


def unsynchronised(forward: nn.Module, last: Literal["last", "not last"]) -> contextlib.AbstractContextManager[Any]:
    """Gradients of all micro-batches but the last stay where they are."""
    if last == "not last" and isinstance(forward, nn.parallel.DistributedDataParallel):
        return forward.no_sync()
    return contextlib.nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered (all processes must ask for it); any other as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, pattern: Tensor) -> Tensor:
    """The whole ``value`` laid out as ``pattern``: its shard, its strides, its device."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(pattern, DTensor):
        moved = value.to(pattern.device, pattern.dtype)
        return distribute_tensor(moved, pattern.device_mesh, pattern.placements, src_data_rank=None)
    # a fused kernel pairs elements by memory: the state needs the strides of the weights
    # its type stays: weights and their 8-bit state differ in it
    return torch.empty_like(pattern, dtype=value.dtype).copy_(value)


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Whole tensors on the host of the main process, one after another; nothing on the others."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if world.main:
            result[name] = full.cpu()
    return result


def refuse_unlike_starts(parameters: Mapping[str, Tensor], world: World) -> None:
    """All processes begin with the same weights: a LoRA's random start, or damaged files, could differ."""
    if world.size == 1:
        return
    total = torch.stack([whole(p.detach()).double().abs().sum() for p in parameters.values()]).sum().cpu()
    both = torch.stack([total, -total])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    if float(both[0] + both[1]) != 0.0:
        raise PogdiffError(
            "The processes did not start from the same weights.",
            hint="Check that every machine has the same model files.",
            exit_code=Exit.MISSING,
        )


@contextlib.contextmanager
def lost_processes_explained(world: World) -> Iterator[None]:
    """A collective that fails because another process is gone or silent, said as such."""
    try:
        yield
    except RuntimeError as problem:
        if world.size == 1 or not any(word in str(problem).lower() for word in _COLLECTIVE):
            raise
        silent = "time" in str(problem).lower()
        what = f"no answer within {world.timeout:g} s (--dist-timeout)" if silent else "one of the others is gone"
        raise RankLostError(
            f"Process {world.rank} of {world.size}: {what}.",
            hint="Type the same command again to go on from the last whole checkpoint, or give --max-restarts.",
        ) from problem


_COLLECTIVE = ("gloo", "nccl", "connection", "timed out", "timeout")
