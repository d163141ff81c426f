"""A rehearsal: real steps and one image tell what a run takes, and nothing of it stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyProject

from pogdiff_cli.engine.objectives import Objective


def tree(root: Path) -> dict[str, bytes]:
    """Every file and its content; folders as empty files."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else b"" for p in sorted(root.rglob("*"))}


def rehearsed(project: TinyProject, *options: str) -> dict[str, Any]:
    done = project("train", "--dry-run", "--json", "--gpus", "none", *options)
    assert done.status == 0, done.err
    return json.loads(done.out)["rehearsal"]


def written(folder: Path, pattern: str = "*") -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def near(value: float) -> Any:
    return pytest.approx(value, rel=0.1)


@pytest.mark.parametrize("method", ["pogdiff", "vanilla", "cbdm", "t2h"])
def test_nothing_is_needed_before_and_nothing_stays_afterwards(project: TinyProject, method: str) -> None:
    before = tree(project.root)
    found = rehearsed(project, "--method", method, "--set", "train.roulette=null")
    assert tree(project.root) == before
    assert found["global_batch"] == 4
    assert found["seconds_per_step"] > 0
    assert found["seconds"] == pytest.approx(6 * found["seconds_per_step"], rel=0.01)
    assert found["second_forward"] == (1.0 if method in ("pogdiff", "cbdm") else 0.0)


def test_nothing_changes_in_a_project_that_has_been_trained_and_a_run_that_is_done_is_not_rehearsed(
    project: TinyProject,
) -> None:
    assert project("train").status == 0
    before = tree(project.root)
    assert rehearsed(project) is None
    assert rehearsed(project, "--name", "other", "--set", "train.learning_rate=1e-3") is not None
    assert tree(project.root) == before


@pytest.mark.parametrize("options", [(), ("--set", "train.tuning=lora"), ("--set", "train.use_ema=true")])
def test_the_disk_that_a_run_needs_is_what_it_then_writes(project: TinyProject, options: tuple[str, ...]) -> None:
    options = ("--name", "run", *options)
    assert project("caption").status == 0
    disk = rehearsed(project, *options)["disk"]
    assert project("train", *options).status == 0
    assert project("sample", "--run", "run").status == 0
    run, cache = project.root / "runs" / "run", project.root / "artifacts" / "cache"
    checkpoints = sorted((run / "checkpoints").iterdir())
    assert disk["checkpoint"] == near(written(checkpoints[-1]))
    assert disk["checkpoints"] == 2 * disk["checkpoint"]  # of 6 steps, at 3 and 6
    assert disk["final"] == near(written(run / "final"))
    assert disk["caches"] == near(written(cache / "latents") + written(cache / "text"))
    assert disk["samples"] == near(written(run / "samples", "0*.png"))
    assert disk["total"] == sum(disk[part] for part in ("caches", "checkpoints", "final", "samples"))
    assert disk["total"] < disk["free"]


def test_memory_holds_weights_gradients_and_optimizer_and_fits_the_machine(project: TinyProject) -> None:
    found = rehearsed(project)
    assert 3 * found["disk"]["checkpoint"] < found["peak_bytes"] < found["memory_bytes"]
    assert found["image_peak_bytes"] > 0


def test_roulette_expects_the_share_of_rows_that_a_run_then_sees(project: TinyProject) -> None:
    options = ("--set", "train.roulette=2.0", "--set", "train.max_train_steps=300", "--set", "train.a2=1.5")
    assert rehearsed(project, *options)["second_forward"] is None
    assert project("train", "--name", "run", *options).status == 0
    expected = rehearsed(project, "--name", "other", *options)["second_forward"]
    lines = [json.loads(line) for line in (project.root / "runs" / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = sum(line["second_forward"] for line in lines) / len(lines)
    assert 0.05 < expected < 0.95
    assert seen == pytest.approx(expected, abs=0.06)  # 1,200 rows: 4 deviations; repeated captions are left out


def test_several_processes_are_counted_and_one_is_rehearsed(project: TinyProject) -> None:
    options = ("--gpus", "none", "--processes", "3", "--set", "train.gradient_accumulation_steps=2")
    done = project("train", "--dry-run", *options)
    assert done.status == 0, done.err
    assert "24 = 4 rows x 2 micro-batches x 3 processes" in done.out
    assert "One of 3 processes was rehearsed" in done.err
    assert rehearsed(project, *options)["processes"] == 3


def test_a_table_names_memory_time_and_disk(project: TinyProject) -> None:
    out = project("train", "--dry-run", "--gpus", "none").out
    for words in ("would run", "peak memory, training", "time to finish 6 steps", "disk: all", "free"):
        assert words in out


def test_out_of_memory_ends_as_the_run_would(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*arguments: object, **keys: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Objective, "__call__", too_large, raising=False)
    monkeypatch.setattr("pogdiff_cli.stages.rehearsal.objective", lambda *arguments: too_large)
    before = tree(project.root)
    done = project("train", "--dry-run", "--gpus", "none")
    assert done.status == 5
    assert "train.train_batch_size" in done.err
    assert tree(project.root) == before


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--set", "pretrained_model_name_or_path=nowhere"), 4),
        (("--set", "train.mixed_precision=fp16"), 2),
        (("--processes", "2", "--nnodes", "2"), 2),
        (("--set", "data.resolution=33"), 2),
    ],
)
def test_what_the_run_would_be_refused_for_is_refused(
    project: TinyProject, options: tuple[str, ...], status: int
) -> None:
    done = project("train", "--dry-run", "--gpus", "none", *options)
    assert done.status == status, done.err
