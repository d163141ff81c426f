"""A finished project with all settings in its file, and the command line; for tests that do something to copies."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import yaml
from conftest import TINY, Outcome, write_pictures

from pogdiff_cli.cli.app import _status

PEOPLE = {"Ada Lovelace": 4, "Alan Turing": 2, "Grace Hopper": 2}
_HELD_OUT = {"Ada Lovelace/3.png"}
_SETTINGS = (
    "train.max_train_steps=4",
    "train.checkpointing_steps=2",
    "density.steps=20",
    "sample.num_inference_steps=2",
    "evaluate.bootstrap=100",
    "evaluate.metrics=[dino, recall]",
)


def pogdiff(*arguments: str | Path) -> Outcome:
    """One command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = _status([str(argument) for argument in arguments])
    return Outcome(status=status, out=out.getvalue(), err=err.getvalue())


def make(root: Path, sd: Path, vit: Path) -> Path:
    """One run through every stage, on pictures of its own."""
    write_pictures(root / "data" / "images", PEOPLE)
    names = [f"{person}/{number}.png" for person, count in PEOPLE.items() for number in range(count)]
    lines = [
        {"file_name": name, "identity": name.split("/")[0], "split": "heldout" if name in _HELD_OUT else "train"}
        for name in names
    ]
    (root / "data" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    configure(
        root, *(setting.format(sd=sd, vit=vit) for setting in TINY), *_SETTINGS, "data.metadata=data/metadata.jsonl"
    )
    made = pogdiff("run", "-C", root)
    assert made.status == 0, made.err
    return root


def configure(root: Path, *settings: str) -> None:
    """Put ``a.b=c`` into the project's file; a later one holds."""
    path = root / "pogdiff.yaml"
    values = (yaml.safe_load(path.read_text()) if path.exists() else {}) or {}
    for setting in settings:
        key, _, text = setting.partition("=")
        place = values
        for part in key.split(".")[:-1]:
            place = place.setdefault(part, {})
        place[key.split(".")[-1]] = yaml.safe_load(text) if key != "train.mixed_precision" else text
    path.write_text(yaml.safe_dump(values, sort_keys=False))
