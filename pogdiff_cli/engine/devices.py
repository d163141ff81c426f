"""Which devices there are, and which of them ``--gpus`` means."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.manifest import Device


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The devices that a command uses on this machine: CUDA devices in order, or the CPU alone."""

    used: tuple[Device, ...]
    local_rank: int = 0

    @property
    def own(self) -> torch.device:
        """The device of this process."""
        device = self.used[self.local_rank % len(self.used)]
        return torch.device(device.kind, device.index) if device.kind == "cuda" else torch.device("cpu")

    @property
    def names(self) -> list[str]:
        """Each device as the manifest names it."""
        return [device.uuid or device.name for device in self.used]


def available() -> tuple[Device, ...]:
    """Every CUDA device that this process may see (CUDA_VISIBLE_DEVICES is honoured)."""
    if not torch.cuda.is_available():
        return ()
    return tuple(_cuda(index) for index in range(torch.cuda.device_count()))


def cpu() -> Device:
    """The processor, with the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = f"{platform.machine()} CPU, {os.cpu_count() or 1} cores"
    return Device(kind="cpu", name=name, memory_bytes=memory)


def select(gpus: str | None, *, local_rank: int = 0, local_size: int = 1) -> Devices:
    """``None``: a GPU for each local process, else the CPU. ``none``: the CPU. ``4``: four GPUs. ``0,2``: those two."""
    found = available()
    if gpus is None:
        return Devices(used=found[:local_size] or (cpu(),), local_rank=local_rank)
    if gpus.strip().lower() in ("none", "0"):
        return Devices(used=(cpu(),), local_rank=local_rank)
    wanted = _indices(gpus, found)
    return Devices(used=tuple(found[index] for index in wanted), local_rank=local_rank)


def _indices(gpus: str, found: tuple[Device, ...]) -> list[int]:
    parts = [part.strip() for part in gpus.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        raise PogdiffError(f"--gpus {gpus} is neither a count, nor a list such as 0,2, nor none.", exit_code=Exit.USAGE)
    wanted = list(range(int(parts[0]))) if "," not in gpus else [int(part) for part in parts]
    if len(set(wanted)) != len(wanted):
        raise PogdiffError(f"--gpus {gpus} names a device twice.", exit_code=Exit.USAGE)
    if any(index >= len(found) for index in wanted):
        raise PogdiffError(f"--gpus {gpus} asks for {_asked(gpus, wanted)}; {_there(found)}", exit_code=Exit.USAGE)
    return wanted


def _asked(gpus: str, wanted: list[int]) -> str:
    return f"{len(wanted)} GPUs" if "," not in gpus else "GPUs " + " and ".join(str(index) for index in wanted)


def _there(found: tuple[Device, ...]) -> str:
    if not found:
        return "this machine has none that torch can use. Type --gpus none to run on the CPU."
    listing = "; ".join(f"{device.index}: {device.name}, {device.memory_bytes / 2**30:.0f} GiB" for device in found)
    return f"there are {len(found)} ({listing}). Type --gpus {len(found)}, or leave --gpus out for the first."


def _cuda(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device(
        kind="cuda",
        index=index,
        name=properties.name,
        uuid=f"GPU-{properties.uuid}" if hasattr(properties, "uuid") else f"cuda:{index}",
        memory_bytes=properties.total_memory,
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=str(torch.version.cuda or ""),
    )
