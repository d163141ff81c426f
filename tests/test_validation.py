"""Validation loss by frequency group."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import COUNTS, TinyProject
from PIL import Image
from processes import said, settings, start, weights

EVERY = settings(validation_loss_steps=3)


@pytest.fixture
def with_heldout(project: TinyProject) -> TinyProject:
    """A metadata file that holds out one more image of each identity."""
    root = project.root / "data"
    lines = []
    for identity, count in COUNTS.items():
        for number in range(count + 1):
            name = f"{identity}/{number}.png"
            path = root / "images" / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                colour = np.full((36, 40, 3), 17 * (number + len(identity)) % 255, dtype=np.uint8)
                Image.fromarray(colour).save(path)
            split = "train" if number < count else "heldout"
            lines.append(json.dumps({"file_name": name, "identity": identity, "text": "", "split": split}))
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return project.configure("data.metadata=data/metadata.jsonl", "data.images=data/images")


def lines_of(project: TinyProject, run: str) -> list[dict[str, float]]:
    path = project.root / "runs" / run / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in found if any(key.startswith("validation_loss") for key in line)]


def test_the_loss_of_held_out_images_is_logged_for_each_group(with_heldout: TinyProject) -> None:
    made = with_heldout("train", "--method", "vanilla", *EVERY)
    assert made.status == 0, made.err
    lines = lines_of(with_heldout, "vanilla")
    assert [line["step"] for line in lines] == [3, 6]
    for group in ("few", "medium", "many"):
        assert 0.1 < lines[0][f"validation_loss_{group}"] < 10


def test_it_does_not_change_what_is_trained_and_is_the_same_in_two_processes(with_heldout: TinyProject) -> None:
    plain = with_heldout("train", "--method", "vanilla", "--name", "plain")
    assert plain.status == 0, plain.err
    watched = with_heldout("train", "--method", "vanilla", "--name", "watched", *EVERY)
    assert watched.status == 0, watched.err
    assert torch.equal(weights(with_heldout, "plain"), weights(with_heldout, "watched"))
    two = start(with_heldout, "two", "--method", "vanilla", "--processes", "2", *EVERY, *settings(train_batch_size=2))
    assert two.wait(120) == 0, said(with_heldout, "two")
    for one, other in zip(lines_of(with_heldout, "watched"), lines_of(with_heldout, "two"), strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_without_held_out_images_it_says_so(project: TinyProject) -> None:
    made = project("train", "--method", "vanilla", *EVERY)
    assert made.status == 0, made.err
    assert "there is no validation loss" in made.err
