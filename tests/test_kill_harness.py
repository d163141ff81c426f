"""Training that is killed again and again, and typed again each time, ends in the bits of one that was not."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from conftest import TinyProject
from processes import (
    base_weights,
    children,
    distance,
    finish,
    gone,
    kill,
    last_checkpoint,
    said,
    settings,
    start,
    steps_done,
    weights,
)

from pogdiff_cli.project.manifest import read_manifest

Moment = Literal["start", "step", "write", "result"]
_MOMENTS: tuple[Moment, ...] = ("step", "step", "write", "write", "start")
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
_PATIENCE = 120.0


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One kill: with what, at which kind of moment, after how many further steps, and how long after that."""

    number: signal.Signals
    moment: Moment
    steps: int
    delay: float


@dataclass(kw_only=True)
class Tally:
    """What the attacks met."""

    kills: int = 0
    terminations: int = 0
    torn_writes: int = 0  # attempts that left a half-written checkpoint behind
    resumptions: int = 0


def attacks(number: int, *, seed: int, further: int) -> list[Attack]:
    """SIGKILL and SIGTERM 3:1, at moments drawn from ``seed``; the last one hits what is written when all is done."""
    draw = random.Random(seed)
    numbers = [_SIGNALS[i % len(_SIGNALS)] for i in range(number)]
    draw.shuffle(numbers)
    drawn = [
        Attack(
            number=each,
            moment=(moment := _MOMENTS[i % len(_MOMENTS)]),
            steps=draw.randint(1, further),
            delay=draw.uniform(0, {"start": 3.0, "step": 0.1, "write": 0.01, "result": 0.0}[moment]),
        )
        for i, each in enumerate(numbers[:-1])
    ]
    return [*drawn, Attack(number=signal.SIGKILL, moment="result", steps=0, delay=0.0)]


def half_written(folder: Path) -> list[Path]:
    """Folders that are being written, or that a killed process has left so."""
    return [path for path in folder.glob(".partial-*") if path.is_dir()]


def wait_for_the_moment(attack: Attack, project: TinyProject, run: str, process: subprocess.Popen[str]) -> None:
    folder = project.root / "runs" / run
    # a line beyond the checkpoint is one of this attempt's own only when the log has been cut back to it
    goal = last_checkpoint(project, run) + attack.steps
    left = set(half_written(folder / "checkpoints"))
    end = time.monotonic() + _PATIENCE
    while attack.moment != "start" and time.monotonic() < end and process.poll() is None:
        if attack.moment == "result" and half_written(folder):
            break
        reached = "goes on at step" in said(project, run) or goal == attack.steps
        if attack.moment == "step" and reached and steps_done(project, run) >= goal:
            break
        if attack.moment == "write" and set(half_written(folder / "checkpoints")) - left:
            break
        time.sleep(0.001 if attack.moment in ("write", "result") else 0.01)
    time.sleep(attack.delay)


def strike(attack: Attack, project: TinyProject, run: str, *options: str) -> signal.Signals | None:
    """Type the command and kill it; the signal that it felt, None where it was done before."""
    process = start(project, run, *options)
    wait_for_the_moment(attack, project, run, process)
    if process.poll() is not None:
        assert process.returncode == 0, said(project, run)
        return None
    process.send_signal(attack.number)
    status = process.wait(_PATIENCE)
    if attack.number == signal.SIGTERM and status == 143:  # it was training, and has saved
        assert "type the same command again" in said(project, run)
    else:
        assert status in (-attack.number, 0), said(project, run)
    return attack.number if status else None


def besiege(project: TinyProject, run: str, plan: list[Attack], *options: str) -> Tally:
    tally = Tally()
    for attack in plan:
        struck = strike(attack, project, run, *options)
        tally.kills += struck == signal.SIGKILL
        tally.terminations += struck == signal.SIGTERM
        tally.torn_writes += bool(half_written(project.root / "runs" / run / "checkpoints"))
        tally.resumptions += "goes on at step" in said(project, run)
    return tally


def assert_as_if_nothing_had_happened(project: TinyProject, run: str, whole: str, steps: int) -> None:
    folder = project.root / "runs" / run
    assert bool((weights(project, run) == weights(project, whole)).all())
    assert distance(weights(project, run), base_weights(project)) > 1e-3  # it has learnt something
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    expected = [json.loads(line) for line in (project.root / "runs" / whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["denoise"] for line in lines] == [line["denoise"] for line in expected]
    assert list(folder.rglob(".partial-*")) == []
    record = read_manifest(project.root / "manifest.yaml").record(f"runs/{run}/train")
    assert record is not None
    assert (record.state, record.facts["steps"]) == ("done", steps)


def undisturbed(project: TinyProject, *options: str) -> None:
    done = project("train", "--gpus", "none", "--name", "whole", *options)
    assert done.status == 0, done.err


def siege(project: TinyProject, *, kills: int, further: int, seed: int) -> Tally:
    """Train once undisturbed and once under attack, and compare."""
    steps = kills * further + 2 * further
    options = settings(max_train_steps=steps, checkpointing_steps=2, logging_steps=1, learning_rate=1e-3)
    undisturbed(project, *options)
    tally = besiege(project, "killed", attacks(kills, seed=seed, further=further), *options)
    finish(project, "killed", *options)
    assert_as_if_nothing_had_happened(project, "killed", "whole", steps)
    return tally


def test_five_kills_change_nothing(project: TinyProject) -> None:
    tally = siege(project, kills=5, further=4, seed=1)
    assert tally.kills + tally.terminations >= 4  # the last may come when all is done
    assert tally.resumptions >= 3


@pytest.mark.slow
def test_fifty_kills_change_nothing(project: TinyProject) -> None:
    tally = siege(project, kills=54, further=5, seed=2)
    assert tally.kills + tally.terminations >= 50
    assert tally.kills > 2 * tally.terminations > 0
    assert tally.torn_writes >= 5
    assert tally.resumptions >= 30


def test_kills_of_one_of_two_processes_or_of_their_launcher_change_nothing(project: TinyProject) -> None:
    steps, two = 30, ("--processes", "2")
    options = settings(max_train_steps=steps, checkpointing_steps=2, logging_steps=1, learning_rate=1e-3)
    finish(project, "whole", *options, *two)
    draw = random.Random(3)
    for victim in ("launcher", "second"):
        process = start(project, "killed", *options, *two)
        attack = Attack(number=signal.SIGKILL, moment="step", steps=draw.randint(2, 5), delay=draw.uniform(0, 0.1))
        wait_for_the_moment(attack, project, "killed", process)
        workers = children(process)
        assert len(workers) == 2, said(project, "killed")
        kill(process.pid if victim == "launcher" else workers[1], attack.number)
        assert process.wait(_PATIENCE) == (-attack.number if victim == "launcher" else 1)
        assert gone(workers)
    finish(project, "killed", *options, *two)
    assert "goes on at step" in said(project, "killed")
    assert_as_if_nothing_had_happened(project, "killed", "whole", steps)
