"""Identity as dlib sees it: 128-d descriptors from a fixed chip, AUC and nearest-centroid accuracy."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .assets import member
from .photos import SETTINGS

CHIP = 150  # side of the picture dlib's network takes


def recogniser(cache: Path) -> Any:
    """dlib's face recognition network."""
    import dlib

    return dlib.face_recognition_model_v1(str(member("dlib_face", cache)))


def chip(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Square picture (s, s) -> (150, 150, 3): the fixed box of faces.yaml, edge pixels repeated outside."""
    size = grey.shape[0]
    left, top, right, bottom = (fraction * size for fraction in SETTINGS["dlib_chip"])
    pad = ceil(max(0.0, -left, -top, right - size, bottom - size))
    padded = Image.fromarray(np.pad(grey, pad, mode="edge"))
    box = (left + pad, top + pad, right + pad, bottom + pad)
    face = padded.resize((CHIP, CHIP), Image.Resampling.BICUBIC, box=box)
    return np.repeat(np.asarray(face)[:, :, None], 3, axis=2)


def describe(greys: NDArray[np.uint8], network: Any) -> NDArray[np.float64]:
    """(n, s, s) grey levels -> (n, 128) descriptors."""
    chips = [np.ascontiguousarray(chip(grey)) for grey in greys]
    return np.asarray([network.compute_face_descriptor(c) for c in chips], dtype=np.float64)


def auc(a: NDArray[np.float64], b: NDArray[np.float64], who_a: NDArray[np.int_], who_b: NDArray[np.int_]) -> float:
    """Same/different AUC over all pairs (a_i, b_j); if a is b, each pair once and no self pairs."""
    from scipy.stats import rankdata

    distance = np.linalg.norm(a[:, None] - b[None], axis=2)
    same = who_a[:, None] == who_b[None]
    if a is b:
        keep = np.triu_indices(len(a), 1)
        distance, same = distance[keep], same[keep]
    ranks = rankdata(-distance.ravel())
    positive = same.ravel()
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def centroids(features: NDArray[np.float64], who: NDArray[np.int_]) -> NDArray[np.float64]:
    """(n, 128) descriptors -> (people, 128) means, in ascending order of who."""
    return np.stack([features[who == person].mean(0) for person in np.unique(who)])


def nearest(features: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int_]:
    """Index of the nearest centroid for each descriptor."""
    return np.linalg.norm(features[:, None] - centres[None], axis=2).argmin(1)
