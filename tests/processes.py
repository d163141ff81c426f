"""Commands as processes of their own: started, disturbed at a known step, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import TinyProject
from safetensors.torch import load_file

from pogdiff_cli.engine.checkpoint import latest_whole

ROOT = Path(__file__).parents[1]


def start(
    project: TinyProject,
    run: str,
    *options: str,
    command: str = "train",
    environment: dict[str, str] | None = None,
    line: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """``pogdiff train --name RUN`` with the tiny settings and ``options``; what it says goes to ``said``.

    ``line``: another command line that starts it.
    """
    words = [*(line or (sys.executable, "-m", "pogdiff_cli", command))]
    words += ["-C", str(project.root), *project.flags, *options]
    words += {"train": ["--name", run], "sample": ["--run", run], "evaluate": ["--run", run]}.get(command, [])
    with said_file(project, run).open("a") as sink:  # several nodes may write to it
        sink.truncate(0)
        return subprocess.Popen(
            [*words, "--gpus", "none"],
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stderr=sink,
            stdout=subprocess.DEVNULL,
            text=True,
        )


def finish(project: TinyProject, run: str, *options: str) -> None:
    """Start a run and let it end well."""
    assert start(project, run, *options).wait(600) == 0, said(project, run)


def said_file(project: TinyProject, run: str) -> Path:
    return project.root / f"{run}.stderr.txt"


def said(project: TinyProject, run: str) -> str:
    """What the last process of a run has written to its standard error."""
    return said_file(project, run).read_text()


def settings(**keys: object) -> list[str]:
    """``settings(max_train_steps=3)``: as ``--set train.max_train_steps=3``."""
    return [word for key, value in keys.items() for word in ("--set", f"train.{key}={value}")]


def steps_done(project: TinyProject, run: str) -> int:
    path = project.root / "runs" / run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def last_checkpoint(project: TinyProject, run: str) -> int:
    """The step of the newest whole checkpoint, 0 where there is none."""
    path = latest_whole(project.root / "runs" / run / "checkpoints")
    return 0 if path is None else int(path.name.split("-")[1])


def wait_for_step(project: TinyProject, run: str, step: int, process: subprocess.Popen[str]) -> None:
    """Until the log (``logging_steps=1``) has reached ``step``."""
    for _ in range(2400):
        if steps_done(project, run) >= step:
            return
        assert process.poll() is None, said(project, run)
        time.sleep(0.05)
    pytest.fail("the run did not get going: " + said(project, run))


def children(process: subprocess.Popen[str]) -> list[int]:
    """Process numbers of the workers, in the order of their ranks."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == process.pid:
                found.append(int(folder.name))
    return sorted(found)


def gone(numbers: Sequence[int], *, within: float = 20.0) -> bool:
    """Whether all of these processes end."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not any(_runs(number) for number in numbers):
            return True
        time.sleep(0.1)
    return False


def kill(number: int, what: signal.Signals) -> None:
    os.kill(number, what)


def weights(project: TinyProject, run: str) -> torch.Tensor:
    """All final weights of a run in one vector, float64."""
    return _vector(project.root / "runs" / run / "final" / "unet" / "diffusion_pytorch_model.safetensors")


def base_weights(project: TinyProject) -> torch.Tensor:
    setting = next(s for s in project.settings if s.startswith("pretrained_model_name_or_path="))
    return _vector(Path(setting.partition("=")[2]) / "unet" / "diffusion_pytorch_model.safetensors")


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """|first - second| / |second|."""
    return float((first - second).norm() / second.norm())


def _vector(path: Path) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(load_file(path).items())])


def _runs(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
