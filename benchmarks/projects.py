"""Projects to measure on: the faces template, or pictures of noise for any model folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.sides import ROOT

#: On top of every project: nothing is saved within a benchmark, and its schedule is longer than it.
ENDLESS = ("train.max_train_steps=1000000", "train.checkpointing_steps=1000000")


def make_faces(folder: Path) -> Path:
    """``pogdiff init --template faces``, and what its training reads, fitted as its sides will ask for it."""
    pogdiff("init", str(folder), "--template", "faces")
    prepare(folder)
    return folder


def make_noise(folder: Path, *, model: Path, extractor: str, resolution: int, images: int = 32, seed: int = 0) -> Path:
    """Pictures of smooth noise, four a person, as JPEG of an odd size: they have to be decoded and resized."""
    draw = np.random.default_rng(seed)
    width, height = resolution + resolution // 8, resolution + resolution // 4
    for number in range(images):
        coarse = draw.integers(0, 256, size=(height // 8, width // 8, 3), dtype=np.uint8)
        path = folder / "data" / "images" / f"person {number // 4}" / f"{number % 4}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=92)
    settings = {
        "pretrained_model_name_or_path": str(model.resolve()),
        "data": {"metadata": None, "resolution": resolution, "many_at_least": 3},
        "index": {"extractor": extractor, "k": 3},
        "density": {"steps": 20},
    }
    (folder / "pogdiff.yaml").write_text(json.dumps(settings, indent=1), encoding="utf-8")  # JSON is YAML
    return folder


def prepare(folder: Path, settings: Sequence[str] = ()) -> None:
    """Make captions, neighbours and density, so that training finds them."""
    words = [word for setting in settings for word in ("--set", setting)]
    for stage in ("caption", "index", "fit-density"):
        pogdiff(stage, "-C", str(folder), *words)


def pogdiff(*words: str) -> None:
    """One command line, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "pogdiff_cli", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"pogdiff {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
