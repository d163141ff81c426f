"""Scoring a run whose images are embedded already: 200 identities, 100 generated images of each, every metric.

A project of small pictures is made, `evaluate` embeds and scores it once, and is then timed while it scores again
from its caches: data and samples are checked, features are read, scores with intervals are computed and written.

    python -m benchmarks.scoring [--identities 200] [--images 100] [--results DIR]
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import results
from benchmarks.ratios import Figure, Target

ROUNDS = 5
SECONDS = Target(relation="at most", bound=20.0)
SIDE = 8  # pixels: features are what is scored, pictures only lead to them
METRICS = ("fid", "kid", "prdc", "dino", "recall", "identity", "bleed", "copy")
DIMENSIONS = {"face": 512, "dino": 768}
HEAD = {"train": 30, "heldout": 10}
TAIL = {"train": 2, "heldout": 8}


def face(pictures: list[Image.Image]) -> np.ndarray:
    """Features of a face recogniser's dimension: a fixed projection of the pixels."""
    return _projected(pictures, "face")


def dino(pictures: list[Image.Image]) -> np.ndarray:
    """Features of a general encoder's dimension."""
    return _projected(pictures, "dino")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--identities", type=int, default=200)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        project = make_project(Path(scratch) / "project", identities=options.identities, images=options.images)
        first, *again = [scored_in(project) for _ in range(1 + options.rounds)]
    figure = Figure(
        name="scoring_seconds",
        what=f"seconds to score {options.identities} identities x {options.images} images, embeddings cached",
        values=tuple(again),
        target=SECONDS,
    )
    print(figure.line())
    details = {"metrics": METRICS, "dimensions": DIMENSIONS, "first_time_with_embedding_seconds": round(first, 1)}
    title = "Scoring from cached embeddings"
    print(results.write("scoring", title=title, figures=[figure], details=details, folder=options.results))
    return 0 if figure.met else 1


def scored_in(root: Path) -> float:
    """Seconds that one evaluation takes, done again though it is up to date."""
    from pogdiff_cli.engine.devices import select
    from pogdiff_cli.project.layout import open_project
    from pogdiff_cli.stages import evaluate
    from pogdiff_cli.stages.context import Context

    started = time.monotonic()
    context = Context(project=open_project(root), devices=select("none"), command="benchmark", mode="force")
    evaluate.run(context, context.project.run("run"))
    return time.monotonic() - started


def make_project(root: Path, *, identities: int, images: int) -> Path:
    """A fifth of the identities with many training images; each a pattern of its own under noise."""
    draw = np.random.default_rng(0)
    records, index = [], []
    for number in range(identities):
        name = f"identity{number:04}"
        pattern = draw.integers(60, 196, size=(SIDE, SIDE, 3))
        for split, count in (HEAD if number % 5 == 0 else TAIL).items():
            for each in range(count):
                file = f"{name}/{split}{each}.png"
                _draw(root / "data/images" / file, pattern, draw)
                records.append({"file_name": file, "identity": name, "split": split, "text": name})
        files = [{"seed": seed, "file": f"{name}/{seed:05d}.png"} for seed in range(images)]
        for file in files:
            _draw(root / "runs/run/samples" / file["file"], pattern, draw)
        index.append({"identity": name, "name": name, "prompt": name, "images": files})
    (root / "data/metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (root / "runs/run/samples/samples.json").write_text(json.dumps(index))
    settings: dict[str, Any] = {
        "extractors": {"py": {"allow_python": True}},
        "evaluate": {
            "metrics": list(METRICS),
            "face": "py:benchmarks.scoring:face",
            "dino": "py:benchmarks.scoring:dino",
        },
    }
    (root / "pogdiff.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return root


def _draw(path: Path, pattern: np.ndarray, draw: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = draw.integers(-60, 60, size=pattern.shape)
    Image.fromarray((pattern + noise).astype(np.uint8)).save(path)


def _projected(pictures: list[Image.Image], kind: str) -> np.ndarray:
    pixels = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float64).ravel() for picture in pictures])
    return (pixels / 128 - 1) @ _projection(kind, pixels.shape[1])


@functools.lru_cache(maxsize=4)
def _projection(kind: str, pixels: int) -> np.ndarray:
    dimensions = DIMENSIONS[kind]
    return np.random.default_rng(dimensions).standard_normal((pixels, dimensions)) / np.sqrt(pixels)


if __name__ == "__main__":
    sys.exit(main())
