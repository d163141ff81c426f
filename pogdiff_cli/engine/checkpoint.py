"""Checkpoints that are whole or absent: written beside, fsynced, digested, renamed; older ones pruned after.

Everything is safetensors and JSON; nothing in a checkpoint is pickled.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pogdiff_cli.engine.parallel import like
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import HIDDEN, atomic_folder, fsync_path
from pogdiff_cli.project.digests import digest_bytes

_NAME = re.compile(r"checkpoint-(\d{6,})\Z")
_DIGESTS = "digests.json"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that a run needs to go on: weights, optimizer state, EMA, and JSON facts (``step`` among them)."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["step"])


def save(folder: Path, snapshot: Snapshot, *, keep: int | None) -> Path:
    """Write ``checkpoint-NNNNNN`` under ``folder``; then, and only then, prune down to the newest ``keep``."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in snapshot.weights.values()):
        raise PogdiffError("The weights are not finite; they are not saved.", exit_code=Exit.NON_FINITE)
    path = folder / f"checkpoint-{snapshot.step:06d}"
    parts = ("weights", "optimizer", "ema")
    size = sum(tensor.nbytes for part in parts for tensor in getattr(snapshot, part).values())
    with atomic_folder(path, size=size) as temporary:
        for part in parts:
            save_file(_contiguous(getattr(snapshot, part)), temporary / f"{part}.safetensors")
        (temporary / "state.json").write_text(json.dumps(snapshot.state, indent=1), encoding="utf-8")
        digests = {item.name: digest_bytes(item) for item in sorted(temporary.iterdir())}
        for item in temporary.iterdir():
            fsync_path(item)
        (temporary / _DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")
    forget_after(folder, snapshot.step)  # of a past that was given up: they would pass for newer than this one
    if keep is not None:
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return path


def forget_after(folder: Path, step: int) -> int:
    """Remove the checkpoints beyond ``step``; how many there were."""
    beyond = [path for path in checkpoints(folder) if _step_of(path) > step]
    for path in beyond:
        shutil.rmtree(path, ignore_errors=True)
    return len(beyond)


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoint folders, oldest first; half-written ones have other names."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.match(path.name) and HIDDEN not in path.name]
    return sorted(found, key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def latest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose digests hold."""
    return next((path for path in reversed(checkpoints(folder)) if is_whole(path)), None)


def damaged(folder: Path) -> list[Path]:
    """Checkpoints newer than the latest whole one: it is gone on with in their place."""
    found, whole = checkpoints(folder), latest_whole(folder)
    return found if whole is None else found[found.index(whole) + 1 :]


def is_whole(path: Path) -> bool:
    """True when every file is there and has the digest it was written with."""
    try:
        digests = json.loads((path / _DIGESTS).read_text(encoding="utf-8"))
        return bool(digests) and all(digest_bytes(path / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def load(path: Path) -> Snapshot:
    """Read a checkpoint; a missing or damaged one is an error, never a silent fresh start."""
    if not path.is_dir():
        raise PogdiffError(f"There is no checkpoint {path}.", exit_code=Exit.MISSING)
    if not is_whole(path):
        raise PogdiffError(
            f"The checkpoint {path} is damaged: its files do not have the digests they were written with.",
            hint="Use --set train.resume_from_checkpoint=latest for the newest whole one.",
            exit_code=Exit.MISSING,
        )
    try:
        tensors = {name: load_file(path / f"{name}.safetensors") for name in ("weights", "optimizer", "ema")}
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as problem:
        raise PogdiffError(f"The checkpoint {path} cannot be read: {problem}.", exit_code=Exit.MISSING) from problem
    return Snapshot(state=state, **tensors)


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """``exp_avg/NAME`` and so on, for each parameter in the order of ``names``."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {  # not of state_dict(), in which bitsandbytes packs its tensors once more
        f"{key}/{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in zip(names, parameters, strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], flat: Mapping[str, Tensor]) -> None:
    """The inverse of ``flatten_optimizer``."""
    position = {name: index for index, name in enumerate(names)}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in flat.items():
        key, name = path.split("/", 1)
        parameter = parameters[position[name]]
        state.setdefault(position[name], {})[key] = _as_it_was(tensor, parameter)
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def _as_it_was(tensor: Tensor, parameter: Tensor) -> Tensor | int:
    if tensor.dim() == 0 and not tensor.is_floating_point():
        return int(tensor)  # a count that was a plain number
    return like(tensor, parameter) if tensor.shape == parameter.shape else tensor


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        # safetensors refuses shared memory, and bitsandbytes has one table for all its states
        found[name] = host.clone() if host.data_ptr() in seen else host
        seen.add(host.data_ptr())
    return found
