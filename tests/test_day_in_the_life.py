"""A project as it is worked on: edit, run, kill, go on, evaluate, again and again; its lineage holds at the end."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, write_pictures
from corruption import configuration, pogdiff
from kills import Start, besiege
from PIL import Image

from pogdiff_cli.project.digests import Digests
from pogdiff_cli.project.manifest import Manifest, StageRecord, read_manifest

RUN = "day"
PEOPLE = {"Ada Lovelace": 4, "Alan Turing": 3, "Grace Hopper": 2}
KEYS = (
    "caption",
    "index",
    "fit-density",
    *(f"runs/{RUN}/{stage}" for stage in ("train", "sample", "evaluate")),
)
#: Which output of which stage an input is.
SOURCES = {
    "captions": ("caption", "artifacts/captions.jsonl"),
    "names": ("caption", "artifacts/names.yaml"),
    "index": ("index", "artifacts/index"),
    "density": ("fit-density", "artifacts/density"),
    "final": (f"runs/{RUN}/train", f"runs/{RUN}/final"),
    "samples": (f"runs/{RUN}/sample", f"runs/{RUN}/samples"),
}


@dataclass
class Day:
    """The project's settings and pictures, as the user has them at the moment."""

    root: Path
    settings: list[str]
    draw: random.Random
    made: int = 0
    edits: list[str] = field(default_factory=list)

    def write(self, root: Path | None = None) -> None:
        (root or self.root).joinpath("pogdiff.yaml").write_text(configuration(self.settings))

    def set(self, setting: str) -> None:
        self.settings.append(setting)
        self.edits.append(setting)

    def add_image(self) -> None:
        self.made += 1
        person = self.draw.choice(sorted(PEOPLE))
        pixels = np.random.default_rng(self.made).integers(0, 256, size=(36, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.root / "data" / "images" / person / f"new{self.made}.png")
        self.edits.append(f"an image of {person} more")

    def remove_image(self) -> None:
        folders = [sorted(folder.glob("*.png")) for folder in sorted((self.root / "data" / "images").iterdir())]
        image = self.draw.choice([images for images in folders if len(images) > 1])[-1]
        image.unlink()
        self.edits.append(f"{image.name} of {image.parent.name} less")

    def replace_image(self) -> None:
        images = sorted((self.root / "data" / "images").rglob("*.png"))
        image = self.draw.choice(images)
        with Image.open(image) as old:
            turned = old.transpose(Image.Transpose.ROTATE_180)
        turned.save(image)
        self.edits.append(f"{image.name} of {image.parent.name} turned")


def edits(draw: random.Random) -> list[Callable[[Day], None]]:
    """What may be done of a morning."""
    choices: list[tuple[str, list[Any]]] = [
        ("train.learning_rate", [1e-3, 5e-4, 2e-4]),
        ("index.k", [2, 3, 4]),
        ("density.temperature", [0.5, 2.0, 4.0]),
        ("density.latent_dim", [4, 8]),
        ("caption.prompts", ['["A photo of {name}."]', '["A photo of {name}.", "A portrait of {name}."]']),
        ("sample.prompt", ['"A picture of {name}."', '"{name}, in oil."']),
        ("sample.images_per_identity", [1, 3]),
        ("train.method", ["vanilla", "cbdm", "t2h", "pogdiff"]),
        ("train.max_train_steps", [6, 8]),
        ("train.tuning", ["lora", "full"]),
        ("evaluate.recall_threshold", [0.5, 0.8]),
        ("data.few_at_most", [1, 3]),
        ("seed", [1, 2]),
    ]
    drawn = [f"{key}={draw.choice(values)}" for key, values in choices]
    settings = [partial(Day.set, setting=setting) for setting in drawn]
    return [*settings, Day.add_image, Day.add_image, Day.remove_image, Day.replace_image]


def begun(root: Path, sd: Path, vit: Path, seed: int) -> Day:
    write_pictures(root / "data" / "images", PEOPLE)
    base = [setting.format(sd=sd, vit=vit) for setting in TINY]
    quick = (
        "data.metadata=null",
        "train.max_train_steps=4",
        "train.checkpointing_steps=2",
        "density.steps=20",
        "sample.num_inference_steps=2",
        "sample.images_per_identity=2",
        "evaluate.metrics=[recall, dino]",
        "runs.day={train.lr_scheduler: constant}",
    )
    return Day(root=root, settings=[*base, *quick], draw=random.Random(seed))


def live(day: Day, *, rounds: int, start: Start) -> int:
    """That many rounds; how many commands were killed."""
    killed, lasts = 0, 8.0
    said = day.root / "said.txt"
    signals = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
    for number in range(rounds):
        if number:
            for edit in day.draw.sample(edits(day.draw), 2):
                edit(day)
        day.write()
        words = ["run", "-C", str(day.root), "--gpus", "none"]
        came = besiege(
            words,
            said,
            start=start,
            kills=1,
            draw=day.draw,
            lasts=lasts if start == "typed" else lasts / 4,
            going=(day.root / "manifest.yaml").exists,
            signals=signals,
        )
        killed += came.kills
        scored = pogdiff("evaluate", "-C", day.root, "--json")
        assert scored.status == 0, (day.edits, scored.err)
        assert {stage["state"] for stage in json.loads(scored.out)["stages"]} == {"up to date"}
    return killed


def record_of(manifest: Manifest, key: str) -> StageRecord:
    record = manifest.record(key)
    assert record is not None, key
    assert record.state == "done", key
    return record


def assert_lineage_holds(day: Day) -> None:
    """From the bytes alone: every output is what was recorded, every input the output of the stage before."""
    manifest = read_manifest(day.root / "manifest.yaml")
    unused = {key for key in KEYS if manifest.record(key) is None}
    assert unused <= {"index", "fit-density"}
    states = {each["key"]: each for each in json.loads(pogdiff("status", "-C", day.root, "--json").out)["stages"]}
    read: set[str] = set()
    for key in reversed(KEYS):
        if not key.startswith("runs/") and key not in read:
            continue  # what this method does not read may be of an earlier round
        record = record_of(manifest, key)
        assert states[key]["fresh"], (states[key], day.edits)
        for path, digest in {**record.outputs, **record.logs}.items():
            assert Digests().of(day.root / path) == digest, (key, path, day.edits)
        for name, digest in record.inputs.items():
            if name in SOURCES:
                source, path = SOURCES[name]
                read.add(source)
                assert record_of(manifest, source).outputs[path] == digest, (key, name, day.edits)
    data = {
        record_of(manifest, key).inputs["data"]
        for key in (*read - {"fit-density", f"runs/{RUN}/sample"}, KEYS[-1])
        if "data" in record_of(manifest, key).inputs
    }
    assert len(data) == 1


def assert_as_if_made_today(day: Day, fresh: Path) -> None:
    """A new project with the last settings and pictures comes to the same bits."""
    for image in (day.root / "data" / "images").rglob("*.png"):
        copy = fresh / image.relative_to(day.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(image.read_bytes())
    day.write(fresh)
    (fresh / "artifacts").mkdir()
    names = day.root / "artifacts" / "names.yaml"  # names once given stay, whatever becomes of the seed
    (fresh / "artifacts" / "names.yaml").write_bytes(names.read_bytes())
    made = pogdiff("run", "-C", fresh, "--gpus", "none")
    assert made.status == 0, made.err
    for pattern in (f"runs/{RUN}/final/**/*", f"runs/{RUN}/samples/**/*", f"runs/{RUN}/evaluation/*"):
        paths = [path for path in fresh.glob(pattern) if path.is_file()]
        assert paths
        for path in paths:
            old = day.root / path.relative_to(fresh)
            assert old.read_bytes() == path.read_bytes(), (old, day.edits)
        assert {p.relative_to(fresh) for p in fresh.glob(pattern)} == {
            p.relative_to(day.root) for p in day.root.glob(pattern)
        }, day.edits


def test_two_rounds_of_work(tmp_path: Path, tiny_sd: Path, tiny_vit: Path) -> None:
    day = begun(tmp_path / "day", tiny_sd, tiny_vit, seed=1)
    live(day, rounds=2, start="forked")
    assert_lineage_holds(day)
    assert_as_if_made_today(day, tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_ten_rounds_of_work(tmp_path: Path, tiny_sd: Path, tiny_vit: Path, seed: int) -> None:
    day = begun(tmp_path / "day", tiny_sd, tiny_vit, seed=seed)
    killed = live(day, rounds=10, start="typed")
    assert killed >= 5
    assert len(day.edits) == 18
    assert_lineage_holds(day)
    assert_as_if_made_today(day, tmp_path / "fresh")
