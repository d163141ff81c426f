"""Training as a process of its own: killed, terminated, typed again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TinyProject
from safetensors.torch import load_file

STEPS = "train.max_train_steps=24"
SETTINGS = ("--set", STEPS, "--set", "train.checkpointing_steps=4", "--set", "train.logging_steps=1")


def start(project: TinyProject, run: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pogdiff_cli", "train", "-C", str(project.root), *project.flags, *SETTINGS]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with said(project, run).open("w") as sink:
        return subprocess.Popen(
            [*command, "--name", run, "--set", "train.method=pogdiff"], env=environment, stderr=sink, text=True
        )


def said(project: TinyProject, run: str) -> Path:
    """What the last process of a run wrote to its standard error."""
    return project.root / f"{run}.stderr.txt"


def steps_done(project: TinyProject, run: str) -> int:
    path = project.root / "runs" / run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def wait_for(project: TinyProject, run: str, steps: int, process: subprocess.Popen[str]) -> None:
    for _ in range(2400):
        if steps_done(project, run) >= steps:
            return
        assert process.poll() is None, "the run ended before it could be disturbed"
        time.sleep(0.05)
    pytest.fail("the run did not get going")


def final_weights(project: TinyProject, run: str) -> dict[str, object]:
    return load_file(project.root / "runs" / run / "final" / "unet" / "diffusion_pytorch_model.safetensors")


def equal(first: dict[str, object], second: dict[str, object]) -> bool:
    return all(bool((first[name] == second[name]).all()) for name in first)  # type: ignore[attr-defined]


def test_a_run_that_is_killed_and_typed_again_ends_in_the_same_bits(project: TinyProject) -> None:
    whole = start(project, "whole")
    assert whole.wait(300) == 0, said(project, "whole").read_text()
    killed = start(project, "killed")
    wait_for(project, "killed", 7, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    terminated = start(project, "killed")
    wait_for(project, "killed", 13, terminated)
    terminated.send_signal(signal.SIGTERM)
    assert terminated.wait(120) == 143
    assert "type the same command again" in said(project, "killed").read_text()
    again = start(project, "killed")
    assert again.wait(300) == 0
    assert "goes on at step" in said(project, "killed").read_text()
    assert equal(final_weights(project, "whole"), final_weights(project, "killed"))
    assert not equal(final_weights(project, "whole"), load_file(_base(project)))


def test_a_second_run_of_the_same_name_is_refused_while_the_first_lasts(project: TinyProject) -> None:
    first = start(project, "one")
    wait_for(project, "one", 1, first)
    second = project("train", "--name", "one", *SETTINGS, "--set", "train.method=pogdiff")
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    assert second.status == 75
    assert str(first.pid) in second.err


def test_validation_images_and_tensorboard_are_written_where_asked_for(project: TinyProject) -> None:
    options = ("--set", "train.validation_steps=3", "--set", "train.report_to=[tensorboard]")
    assert project("train", *options).status == 0
    run = project.root / "runs" / "pogdiff"
    assert len(list((run / "validation" / "step-000006").glob("*.png"))) == 4
    assert list((run / "tensorboard").glob("events.out.*"))


def _base(project: TinyProject) -> Path:
    setting = next(s for s in project.settings if s.startswith("pretrained_model_name_or_path="))
    return Path(setting.partition("=")[2]) / "unet" / "diffusion_pytorch_model.safetensors"
