"""Processes that torchrun, Slurm or several machines have started: they find each other and train one model."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from conftest import TinyProject
from processes import ROOT, base_weights, distance, said, settings, start, weights

from pogdiff_cli.project.templates import template_names, template_root

TEN = settings(max_train_steps=10, learning_rate=1e-3, logging_steps=1)
HALVES = (*TEN, *settings(train_batch_size=4))
LAUNCH = ROOT / "templates" / "launch"

#: What stands in for the commands of a cluster of two nodes; both are this machine.
SHIMS = {
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "pogdiff": f'exec {sys.executable} -m pogdiff_cli "$@"',
    "scontrol": '[ "$1 $2 $3" = "show hostnames localhost,elsewhere" ] && echo localhost && echo elsewhere',
    "srun": """
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost,elsewhere SLURM_LOCALID=0
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@" & second=$!
wait $first && wait $second""",
}


@pytest.fixture
def prepared(project: TinyProject) -> TinyProject:
    """A project in which one process has trained on the whole of each batch."""
    done = project("train", "--gpus", "none", "--name", "one", *TEN, *settings(train_batch_size=8))
    assert done.status == 0, done.err
    assert distance(base_weights(project), weights(project, "one")) > 0.01
    return project


@pytest.fixture
def shims(tmp_path: Path) -> dict[str, str]:
    """An environment in which the cluster's commands are found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in SHIMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def assert_the_same_model(project: TinyProject, run: str) -> None:
    assert distance(weights(project, run), weights(project, "one")) < 1e-5, said(project, run)
    assert "Global batch 8: 4 a micro-batch x 2 processes." in said(project, run)


def test_the_torchrun_line_of_the_templates_trains_one_model(prepared: TinyProject, shims: dict[str, str]) -> None:
    line = [str(LAUNCH / "torchrun.sh"), "2"]
    run = start(prepared, "run", *HALVES, environment=shims, line=line)
    assert run.wait(300) == 0, said(prepared, "run")
    assert_the_same_model(prepared, "run")


def test_the_tasks_of_a_slurm_step_train_one_model(prepared: TinyProject) -> None:
    step = {
        "SLURM_JOB_ID": str(free_port() - 20_000),  # from which the port follows
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }
    tasks = [
        start(prepared, "run", *HALVES, environment=step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in ("0", "1")
    ]
    assert [task.wait(300) for task in tasks] == [0, 0], said(prepared, "run")
    assert_the_same_model(prepared, "run")


def test_the_slurm_script_of_the_templates_trains_one_model_on_two_nodes(
    prepared: TinyProject, shims: dict[str, str]
) -> None:
    job = {
        "SLURM_JOB_ID": str(free_port() - 20_000),
        "SLURM_JOB_NODELIST": "localhost,elsewhere",
        "SLURM_JOB_NUM_NODES": "2",
    }
    run = start(prepared, "run", *HALVES, environment=shims | job, line=[str(LAUNCH / "slurm.sh")])
    assert run.wait(300) == 0, said(prepared, "run")
    assert_the_same_model(prepared, "run")


def test_launch_files_are_no_project_template() -> None:
    assert template_root() == LAUNCH.parent
    assert "launch" not in template_names()
