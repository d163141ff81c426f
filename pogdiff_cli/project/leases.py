"""Two commands of a project do not take the same GPU: a kernel lock a device, free again when its holder is gone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.locks import locked
from pogdiff_cli.project.manifest import Device


@contextlib.contextmanager
def leased(folder: Path, devices: Sequence[Device], command: str) -> Iterator[None]:
    """Hold every CUDA device of ``devices``; one that is taken is exit 75 with the holder's name."""
    with contextlib.ExitStack() as stack:
        for device in devices:
            if device.kind == "cuda":
                stack.enter_context(_one(folder, device, command))
        yield


def free(folder: Path, devices: Sequence[Device]) -> list[Device]:
    """The devices that no command of this project holds now."""
    found = []
    for device in devices:
        with contextlib.suppress(PogdiffError), _one(folder, device, "a look"):
            found.append(device)
    return found


@contextlib.contextmanager
def _one(folder: Path, device: Device, command: str) -> Iterator[None]:
    name = re.sub(r"[^A-Za-z0-9.-]", "-", device.uuid or f"cuda-{device.index}")
    lock = locked(folder / f"device-{name}.lock", f"GPU {device.index} ({device.name})", command)
    try:
        lock.__enter__()
    except PogdiffError as problem:
        raise PogdiffError(
            problem.message,
            hint="Choose another with --gpus, wait, or type --share-gpus to use it all the same.",
            exit_code=Exit.LOCKED,
        ) from None
    with contextlib.ExitStack() as stack:
        stack.push(lock)
        yield
