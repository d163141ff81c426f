"""Generated data of any size: clustered vectors with a long tail, and a project of small pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SIDE = 8  # pixels of a picture
DIM = 384
_CHUNK = 65_536


def long_tail(n: int, identities: int) -> NDArray[np.int64]:
    """Images per identity, 2 at least, the rest by 1 / (rank + 30): sums to n."""
    weight = 1.0 / (np.arange(identities) + 30.0)
    counts = 2 + np.floor((n - 2 * identities) * weight / weight.sum()).astype(np.int64)
    counts[: n - int(counts.sum())] += 1
    return counts


def clustered_vectors(path: Path, n: int, *, dim: int = DIM, seed: int = 0, noise: float = 0.05) -> Path:
    """n / 20 clusters with a long tail in 500 groups, variances that fall as 1 / rank, and 5 % that belong nowhere.

    Deviations: 1 between groups, 0.7 between the clusters of a group, 0.35 within a cluster.
    """
    draw = np.random.default_rng(seed)
    scale = (1.0 + np.arange(dim)) ** -0.5
    scale = (scale / np.sqrt(np.square(scale).mean())).astype(np.float32)
    clusters = max(2, n // 20)
    groups = draw.standard_normal((500, dim), dtype=np.float32) * scale
    centres = groups[draw.integers(500, size=clusters)]
    centres = centres + np.float32(0.7) * draw.standard_normal((clusters, dim), dtype=np.float32) * scale
    of_row = draw.permutation(np.repeat(np.arange(clusters), long_tail(n, clusters)))
    alone = draw.random(n) < noise
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, dim))
    for start in range(0, n, _CHUNK):
        rows = slice(start, min(start + _CHUNK, n))
        own = draw.standard_normal((rows.stop - start, dim), dtype=np.float32) * scale
        out[rows] = np.where(alone[rows, None], np.float32(1.25) * own, centres[of_row[rows]] + np.float32(0.35) * own)
    out.flush()
    return path


def isotropic_vectors(path: Path, n: int, *, dim: int = DIM, seed: int = 0) -> Path:
    """Independent normal values: no structure at all, the worst case of every index."""
    draw = np.random.default_rng(seed)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, dim))
    for start in range(0, n, _CHUNK):
        stop = min(start + _CHUNK, n)
        out[start:stop] = draw.standard_normal((stop - start, dim), dtype=np.float32)
    out.flush()
    return path


def make_project(folder: Path, records: int, *, seed: int = 0) -> Path:
    """A project of ``records`` pictures of 8 x 8 pixels, one identity in 20 records, and a random tiny pipeline."""
    draw = np.random.default_rng(seed)
    identities = max(2, records // 20)
    counts = long_tail(records, identities)
    patterns = draw.integers(40, 216, size=(200, SIDE, SIDE, 3))[draw.integers(200, size=identities)]
    patterns = patterns + draw.integers(-24, 25, size=patterns.shape)
    images = folder / "data" / "images"
    lines: list[str] = []
    row = 0
    for identity, count in enumerate(counts.tolist()):
        noise = draw.integers(-16, 17, size=(count, SIDE, SIDE, 3))
        pixels = np.clip(patterns[identity] + noise, 0, 255).astype(np.uint8)
        for picture in pixels:
            name = f"{row // 1000:05d}/{row % 1000:03d}.png"
            if row % 1000 == 0:
                (images / name).parent.mkdir(parents=True)
            Image.fromarray(picture).save(images / name, compress_level=1)
            lines.append(json.dumps({"file_name": name, "identity": f"person {identity:06d}"}))
            row += 1
    (folder / "data" / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "pogdiff.yaml").write_text(json.dumps(_settings(_tiny_pipeline(folder)), indent=1), encoding="utf-8")
    return folder


def _tiny_pipeline(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import save_stable_diffusion

    return save_stable_diffusion(folder / "models" / "tiny")


def _settings(pipeline: Path) -> dict[str, object]:
    prompts = ["An image of {name}.", "A photo of {name}.", "A portrait of {name}.", "A close-up of {name}."]
    extractor = "py:benchmarks.scale_data:projected_pixels"
    return {  # JSON is YAML
        "pretrained_model_name_or_path": str(pipeline),
        "data": {"metadata": "data/metadata.jsonl", "resolution": 32},
        "caption": {"prompts": prompts},
        "index": {"extractor": extractor, "batch_size": 256},
        "extractors": {extractor: {"allow_python": True}},
    }


def projected_pixels(pictures: list[Image.Image]) -> NDArray[np.float32]:
    """A cheap extractor: 8 x 8 x 3 pixels by a fixed random matrix. (b) pictures -> (b, 384)."""
    size = SIDE * SIDE * 3
    matrix = np.random.default_rng(0).standard_normal((size, DIM), dtype=np.float32) / np.float32(np.sqrt(size))
    small = [picture if picture.size == (SIDE, SIDE) else picture.resize((SIDE, SIDE)) for picture in pictures]
    pixels = np.stack([np.asarray(picture, dtype=np.float32).reshape(-1) for picture in small])
    return np.asarray((pixels / 127.5 - 1.0) @ matrix, dtype=np.float32)
