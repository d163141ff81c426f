"""A project whose runs have samples, without any training: what `rate` needs, in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import TinyProject, write_pictures
from PIL import Image

from pogdiff_cli.data.paths import safe_folder
from pogdiff_cli.metrics.ratings import HumanScores, RatedItem, rate_run, weigh_rater

#: Training images by identity; with many_at_least=5: one of the many, one medium, two of the few, hostile names.
IDENTITIES = {"<script>alert(1)": 6, "=cmd()|'calc'": 4, "Grace Hopper": 2, "Katherine Johnson": 2}
RUNS = ("vanilla", "pogdiff", "balanced-run")


def write_samples(root: Path, run: str, identities: dict[str, int], *, seeds: int, seed: int) -> Path:
    """``runs/NAME/samples`` as the stage writes it."""
    draw = np.random.default_rng(seed)
    folder = root / "runs" / run / "samples"
    index = []
    for number, identity in enumerate(identities):
        images = []
        for each in range(seeds):
            file = f"{safe_folder(identity)}/{each:05d}.png"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / file)
            images.append({"seed": each, "file": file})
        index.append({"identity": identity, "name": f"generic {number}", "prompt": "An image.", "images": images})
    (folder / "samples.json").write_text(json.dumps(index))
    return folder


def with_samples(
    project: TinyProject, *, identities: dict[str, int] | None = None, runs: tuple[str, ...] = RUNS, seeds: int = 2
) -> TinyProject:
    """The project over other pictures, with samples of some runs."""
    wanted = identities or IDENTITIES
    pictures = write_pictures(project.root.parent / "rated pictures", wanted)
    for number, run in enumerate(runs):
        write_samples(project.root, run, wanted, seeds=seeds, seed=number)
    return project.configure(f"data.images={pictures}", "data.metadata=null")


def key_of(project: TinyProject) -> dict[str, dict[str, object]]:
    """What stands behind each id."""
    body = json.loads((project.root / "artifacts/rating/rating_key.json").read_text())
    items: dict[str, dict[str, object]] = body["items"]
    return items


def page_of(project: TinyProject) -> str:
    body = json.loads((project.root / "artifacts/rating/rating_key.json").read_text())
    return str(body["page"])


def export(project: TinyProject, rater: str, answers: dict[str, object], **changes: object) -> dict[str, object]:
    """What the page saves."""
    body = {
        "schema": "ratings/1",
        "page": page_of(project),
        "rater": rater,
        "exported": "2026-01-01T00:00:00.000Z",
        "answers": [{"id": item, "value": value, "seconds": 1.5} for item, value in answers.items()],
    }
    return {**body, **changes}


def attentive(key: dict[str, dict[str, object]], judge: Callable[[dict[str, object]], int]) -> dict[str, object]:
    """Checks answered as someone who looks answers them, images and repeats by ``judge``."""
    return {
        item: judge(entry) if entry["kind"] != "check" else entry["accept"][0]  # type: ignore[index]
        for item, entry in key.items()
    }


def human_scores(run: str, identities: dict[str, str], raters: tuple[str, ...]) -> HumanScores:
    """Ratings of two images of each identity (name to group); the last rater answers every check wrongly."""
    images = [(identity, shot, number) for identity, shot in identities.items() for number in range(2)]
    items = {
        f"{identity} {number}": RatedItem(kind="image", run=run, identity=identity, shot=shot)
        for identity, shot, number in images
    }
    items["check"] = RatedItem(kind="check", accept=(1,))
    weighed = [
        weigh_rater(
            {
                **{item: (place + place * order) % 2 for place, item in enumerate(items)},
                "check": int(name != raters[-1]),
            },
            items,
            categories=(0, 1),
            pass_at=0.8,
            failed="exclude",
            rater=name,
            source=f"{name}.json",
            malformed=0,
            repeated=0,
        )
        for order, name in enumerate(raters)
    ]
    counted = [answers for rater, answers in weighed if rater.included]
    groups, means = rate_run(run, items, counted, categories=(0, 1), seed=0, resamples=100)
    return HumanScores(
        run=run,
        page="0" * 64,
        samples="",
        protocol={"name": "same", "question": "Is this the same person?", "categories": [0, 1]},
        raters=tuple(rater for rater, _ in weighed),
        refused={"x.json": "damaged JSON"},
        superseded=(),
        groups=groups,
        per_identity=means,
    )
