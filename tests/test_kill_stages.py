"""A stage that is killed at random moments and typed again makes what is missing, and ends in the same bits."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyProject
from kills import Besieged, Start, besiege, runs_now

from pogdiff_cli.project.digests import Digests
from pogdiff_cli.project.manifest import read_manifest, write_manifest

STAGES = ("caption", "index", "fit-density", "sample", "evaluate")
_SLOW = """
import json, os, time
import numpy as np

def _count(number):
    with open(os.environ["COUNT_FILE"], "a") as file:
        file.write(f"{number}\\n")

def describe(images, requests):
    time.sleep(0.02 * len(images))
    _count(len(images))
    return [f"{request.name}, picture {request.file_name}" for request in requests]

def embed(images):
    time.sleep(0.01 * len(images))
    _count(len(images))
    return np.stack([np.asarray(image.resize((4, 4)), dtype=np.float32).ravel() for image in images])
"""
_SETTINGS = (
    "caption.captioner=py:slow_model:describe",
    "caption.allow_python=true",
    "caption.batch_size=2",
    "index.extractor=py:slow_model:embed",
    "index.batch_size=2",
    "evaluate.dino=py:slow_model:embed",
    "evaluate.face=py:slow_model:embed",
    "evaluate.batch_size=2",
    "evaluate.metrics=[recall, dino]",
    "extractors={py: {allow_python: true}}",
    "density.steps=300",
    "train.method=vanilla",
    "train.max_train_steps=2",
    "train.checkpointing_steps=2",
    "sample.images_per_identity=4",
    "sample.batch_size=3",
)


@pytest.fixture
def prepared(project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    """A project whose models take their time, trained; beyond captions and training nothing has been made."""
    (tmp_path / "slow_model.py").write_text(_SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("COUNT_FILE", str(tmp_path / "count.txt"))
    slow = project.configure(*_SETTINGS)
    assert slow("train").status == 0
    return slow


def outputs(root: Path, key: str) -> dict[str, str | None]:
    """Digests of what a stage has made, read from the bytes; they have to be those that it recorded."""
    record = read_manifest(root / "manifest.yaml").record(key)
    assert record is not None
    assert record.state == "done"
    found = {path: Digests().of(root / path) for path in record.outputs}
    assert found == record.outputs
    return dict(found)


def cleared(project: TinyProject, stage: str, key: str) -> None:
    """As before the stage was ever run."""
    root = project.root
    made = {
        "caption": ["artifacts/captions.jsonl", "artifacts/names.yaml", "artifacts/descriptions.jsonl"],
        "index": ["artifacts/index", "artifacts/cache/embeddings"],
        "fit-density": ["artifacts/density"],
        "sample": ["runs/vanilla/samples"],
        "evaluate": ["runs/vanilla/evaluation", "artifacts/cache/embeddings"],
    }[stage]
    for path in (root / name for name in made):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    path = root / "manifest.yaml"
    manifest = read_manifest(path)
    manifest.stages.pop(key, None)
    for run in manifest.runs.values():
        run.pop(stage, None)
    write_manifest(path, manifest)


def counted(action: Callable[[], Any], path: Path) -> tuple[Any, int]:
    """What an action comes to, and how many pictures were described or embedded meanwhile."""
    path.write_text("")
    result = action()
    return result, sum(int(line) for line in path.read_text().split())


def siege(project: TinyProject, stage: str, *, kills: int, start: Start, seed: int) -> tuple[Besieged, int, int]:
    """The stage once undisturbed and once under attack; pictures looked at in each."""
    key = stage if stage in ("caption", "index", "fit-density") else f"runs/vanilla/{stage}"
    if stage == "evaluate":
        assert project("sample").status == 0
    words = [stage, "-C", str(project.root), *project.flags, "--gpus", "none"]
    count = project.root.parent / "count.txt"
    cleared(project, stage, key)
    began = time.monotonic()
    done, looked = counted(lambda: project(stage, "--gpus", "none"), count)
    lasts = time.monotonic() - began
    assert done.status == 0, done.err
    undisturbed = outputs(project.root, key)
    cleared(project, stage, key)
    said = project.root / "said.txt"
    going = runs_now(project.root, key)
    besieged, again = counted(
        lambda: besiege(
            words, said, start=start, kills=kills, draw=random.Random(seed), lasts=lasts * 0.7, going=going
        ),
        count,
    )
    assert outputs(project.root, key) == undisturbed
    assert list((project.root / "runs").rglob(".partial-*")) == []  # elsewhere they may be another command's at work
    states = json.loads(project("status", "--json").out)["stages"]
    assert next(state for state in states if state["key"] == key)["fresh"]
    return besieged, looked, again


def test_captions_and_images_survive_kills(prepared: TinyProject) -> None:
    besieged, looked, again = siege(prepared, "caption", kills=3, start="forked", seed=1)
    assert besieged.kills >= 1
    assert looked <= again <= looked + 2 * besieged.kills  # a batch is lost at most
    besieged, _, _ = siege(prepared, "sample", kills=3, start="forked", seed=2)
    assert besieged.kills >= 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_killed_again_and_again_ends_in_the_same_bits(prepared: TinyProject, stage: str) -> None:
    besieged, looked, again = siege(prepared, stage, kills=10, start="typed", seed=3)
    assert besieged.kills >= 5
    if stage == "caption":
        assert looked <= again <= looked + 2 * besieged.kills


def test_images_that_are_there_are_kept_and_not_made_again(prepared: TinyProject) -> None:
    assert prepared("sample").status == 0
    images = sorted((prepared.root / "runs/vanilla/samples").rglob("0*.png"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in images}
    for lost in images[1::5]:
        lost.unlink()
    facts = json.loads(prepared("sample", "--json").out)["stages"][0]["facts"]
    assert (facts["generated"], facts["kept"]) == (3, 13)
    for path, (when, content) in before.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == when) == (path not in images[1::5])
