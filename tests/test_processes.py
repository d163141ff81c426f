"""Several processes for one command: the same model, and an end when one of them is gone."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import TinyProject
from processes import (
    ROOT,
    base_weights,
    children,
    distance,
    finish,
    gone,
    kill,
    said,
    settings,
    start,
    wait_for_step,
    weights,
)
from safetensors.torch import load_file

from pogdiff_cli.engine.tuning import LORA_FILE

LONG = settings(max_train_steps=400, checkpointing_steps=10, logging_steps=1)
SHORT = settings(max_train_steps=40, checkpointing_steps=10, logging_steps=1)
TWO = ("--processes", "2")


@pytest.fixture
def prepared(project: TinyProject) -> TinyProject:
    """A project whose captions, index and density are there."""
    assert project("train", "--name", "first", "--set", "train.max_train_steps=1").status == 0
    return project


def test_any_split_of_the_global_batch_trains_the_same_model(prepared: TinyProject) -> None:
    steps = settings(max_train_steps=50, learning_rate=2e-4)
    finish(prepared, "one", *steps, *settings(train_batch_size=8))
    finish(prepared, "two", *steps, *settings(train_batch_size=4), *TWO)
    finish(prepared, "pieces", *steps, *settings(train_batch_size=2, gradient_accumulation_steps=2), *TWO)
    finish(prepared, "sharded", *steps, *settings(train_batch_size=4, parallel="fsdp"), *TWO)
    one = weights(prepared, "one")
    assert distance(base_weights(prepared), one) > 0.01
    assert distance(weights(prepared, "two"), one) < 1e-5
    assert distance(weights(prepared, "pieces"), one) < 1e-5
    assert distance(weights(prepared, "sharded"), weights(prepared, "two")) < 1e-5


@pytest.mark.slow
def test_a_text_encoder_s_lora_and_a_half_base_are_those_of_one_process(prepared: TinyProject) -> None:
    steps = settings(max_train_steps=20, learning_rate=1e-3, tuning="lora", rank=2, caption_dropout=0.3)
    text = (*steps, *settings(train_text_encoder="true", text_encoder_rank=2))
    half = (*steps, *settings(mixed_precision="bf16"))
    finish(prepared, "one", *text, *settings(train_batch_size=8))
    finish(prepared, "two", *text, *settings(train_batch_size=2, gradient_accumulation_steps=2), *TWO)
    finish(prepared, "half", *half, *settings(train_batch_size=8))
    finish(prepared, "half-two", *half, *settings(train_batch_size=4), *TWO)
    finish(prepared, "half-sharded", *half, *settings(train_batch_size=4, parallel="fsdp"), *TWO)
    one, two = lora_of(prepared, "one"), lora_of(prepared, "two")
    assert len(one) > len(lora_of(prepared, "half"))
    assert distance(two, one) < 1e-5
    assert distance(lora_of(prepared, "half-two"), lora_of(prepared, "half")) < 1e-3
    assert distance(lora_of(prepared, "half-sharded"), lora_of(prepared, "half-two")) < 1e-3


@pytest.mark.slow
def test_class_images_and_what_they_teach_are_those_of_one_process(prepared: TinyProject) -> None:
    keys = {"num_class_images": 5, "class_prompts": '["a face"]', "tuning": "lora", "rank": 2}
    steps = settings(max_train_steps=10, learning_rate=1e-3, **keys)
    finish(prepared, "one", *steps, *settings(train_batch_size=8))
    drawn = {path: path.read_bytes() for path in prepared.root.glob("artifacts/cache/class/*/*/*.png")}
    assert len(drawn) == 5
    shutil.rmtree(prepared.root / "artifacts/cache/class")
    finish(prepared, "two", *steps, *settings(train_batch_size=4), *TWO)
    assert {path: path.read_bytes() for path in drawn} == drawn
    assert distance(lora_of(prepared, "two"), lora_of(prepared, "one")) < 1e-5


def lora_of(project: TinyProject, run: str) -> torch.Tensor:
    """The LoRA of a run as one vector; a text encoder's part must have moved where it has one."""
    layers = load_file(project.root / "runs" / run / "final" / LORA_FILE)
    of_text = [value for name, value in layers.items() if name.startswith("text_encoder.") and "lora_B" in name]
    assert all(float(value.abs().max()) > 0 for value in of_text)
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(layers.items())])


def test_a_killed_process_ends_the_run_within_seconds_and_names_itself(prepared: TinyProject) -> None:
    run = start(prepared, "run", *LONG, *TWO)
    wait_for_step(prepared, "run", 3, run)
    workers = children(run)
    kill(workers[1], signal.SIGKILL)
    killed = time.monotonic()
    assert run.wait(60) == 1
    assert time.monotonic() - killed < 20
    assert "was ended by SIGKILL" in said(prepared, "run")
    assert gone(workers)


def test_a_hung_process_ends_the_run_after_the_time_limit(prepared: TinyProject) -> None:
    run = start(prepared, "run", *LONG, *TWO, "--dist-timeout", "5")
    wait_for_step(prepared, "run", 3, run)
    workers = children(run)
    kill(workers[0], signal.SIGSTOP)  # the main process itself
    hung = time.monotonic()
    assert run.wait(90) == 1
    assert 4 < time.monotonic() - hung < 45
    assert "no answer within 5 s (--dist-timeout)" in said(prepared, "run")
    assert gone(workers)


def test_after_a_restart_the_run_goes_on_from_the_last_checkpoint(prepared: TinyProject) -> None:
    finish(prepared, "whole", *SHORT, *TWO)
    run = start(prepared, "killed", *SHORT, *TWO, "--max-restarts", "1", "--force")
    wait_for_step(prepared, "killed", 13, run)
    kill(children(run)[0], signal.SIGKILL)
    assert run.wait(180) == 0, said(prepared, "killed")
    assert "goes on at step" in said(prepared, "killed")
    assert bool((weights(prepared, "killed") == weights(prepared, "whole")).all())


def test_a_signal_to_the_launcher_saves_and_ends_all(prepared: TinyProject) -> None:
    run = start(prepared, "run", *settings(max_train_steps=400, checkpointing_steps=1000, logging_steps=1), *TWO)
    wait_for_step(prepared, "run", 3, run)
    workers = children(run)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143
    assert gone(workers)
    assert "type the same command again" in said(prepared, "run")
    assert len(list((prepared.root / "runs" / "run" / "checkpoints").glob("checkpoint-*"))) == 1


def test_workers_end_with_a_launcher_that_is_killed(prepared: TinyProject) -> None:
    run = start(prepared, "run", *LONG, *TWO)
    wait_for_step(prepared, "run", 3, run)
    workers = children(run)
    run.kill()
    run.wait(60)
    assert gone(workers)


def test_a_mistake_is_said_once_and_not_tried_again(prepared: TinyProject) -> None:
    run = start(prepared, "run", *settings(learning_rate=1e30), *TWO, "--max-restarts", "2")
    assert run.wait(120) == 6
    assert said(prepared, "run").count("was not finite") == 1


def test_another_number_of_processes_does_not_throw_the_checkpoints_away(prepared: TinyProject) -> None:
    run = start(prepared, "run", *LONG, *TWO)
    wait_for_step(prepared, "run", 12, run)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143
    alone = prepared("train", "--name", "run", *LONG)
    assert alone.status == 2
    assert "global batch of 8 (2 processes)" in alone.err
    same = prepared("train", "--name", "run", *settings(max_train_steps=30, train_batch_size=8))
    assert same.status == 0, same.err
    assert "goes on at step" in same.err


def captions_of(project: TinyProject) -> bytes:
    return (project.root / "artifacts" / "captions.jsonl").read_bytes()


@pytest.mark.slow
def test_captions_neighbours_and_images_are_those_of_one_process(project: TinyProject, tmp_path: Path) -> None:
    (tmp_path / "describer.py").write_text(
        "import os\n"
        "def describe(images, requests):\n"
        "    with open(os.environ['WHO'], 'a') as who:\n"
        "        who.write(f\"{os.environ.get('RANK', '0')} {len(images)}\\n\")\n"
        "    return [f'{r.name} is number {r.file_name}' for r in requests]\n"
    )
    who = tmp_path / "who.txt"
    describer = ("--set", "caption.captioner=py:describer:describe", "--set", "caption.allow_python=true")
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "WHO": str(who)}
    made = []
    for processes in ("1", "2"):
        again = ("--processes", processes, "--force")
        for command in ("caption", "index"):
            run = start(project, "x", *describer, *again, environment=environment, command=command)
            assert run.wait(120) == 0, said(project, "x")
        made.append((captions_of(project), (project.root / "artifacts" / "index" / "neighbours.npy").read_bytes()))
        if processes == "1":
            who.unlink()
            shutil.rmtree(project.root / "artifacts" / "cache")
    assert made[0] == made[1]
    counts = [tuple(int(word) for word in line.split()) for line in who.read_text().splitlines()]
    assert {rank: sum(n for r, n in counts if r == rank) for rank in (0, 1)} == {0: 7, 1: 7}
    assert not list((project.root / "artifacts").glob("descriptions.part-*"))


@pytest.mark.slow
def test_samples_are_shared_and_are_those_of_one_process(prepared: TinyProject) -> None:
    images = []
    for processes in ("1", "2"):
        run = start(prepared, "first", "--processes", processes, "--force", command="sample")
        assert run.wait(120) == 0, said(prepared, "first")
        folder = prepared.root / "runs" / "first" / "samples"
        images.append({path.name + path.parent.name: path.read_bytes() for path in folder.rglob("0*.png")})
    assert len(images[0]) == 8
    assert images[0] == images[1]


@pytest.mark.slow
def test_scores_of_two_processes_are_those_of_one(prepared: TinyProject) -> None:
    scores = []
    for processes in ("1", "2"):
        run = start(prepared, "first", "--processes", processes, "--force", command="evaluate")
        assert run.wait(180) == 0, said(prepared, "first")
        scores.append((prepared.root / "runs" / "first" / "evaluation" / "scores.json").read_bytes())
        shutil.rmtree(prepared.root / "artifacts" / "cache" / "embeddings")
    assert scores[0] == scores[1]
