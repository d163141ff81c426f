"""What the base was made from: digests of inputs, versions, settings, durations, measured figures."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .assets import TEMPLATE, entries, sha256

PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "numpy", "pillow", "dlib-bin")


def seconds(lines: list[str], stage: str) -> float:
    """Duration of a stage from the training log; a resumed stage starts its clock anew and the parts add up."""
    clock = [json.loads(line)["seconds"] for line in lines if json.loads(line)["stage"] == stage]
    ends = [now for now, after in zip(clock, [*clock[1:], 0.0], strict=True) if after < now]
    return round(sum(ends), 1)


def describe(out: Path, settings: dict[str, Any], log: list[str], figures: dict[str, Any]) -> dict[str, Any]:
    """The record written as provenance.json."""
    inputs = ["faces.yaml", "world.jsonl", "world_names.txt", "train_base.py"]
    inputs += sorted(f"training/{path.name}" for path in (TEMPLATE / "training").glob("*.py"))
    wheels = {entry["filename"]: entry["sha256"] for entry in entries().values()}
    return {
        "command": "python templates/faces/train_base.py",
        "inputs": {"wheels": wheels, "files": {name: sha256(TEMPLATE / name) for name in inputs}},
        "outputs": {str(path.relative_to(out)): sha256(path) for path in sorted(out.rglob("*.safetensors"))},
        "settings": settings,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "seconds": {stage: seconds(log, stage) for stage in ("vae", "unet")},
        "figures": figures,
        "trained_on": "photographs of s1-s20 only, and pseudo-people; s21-s40 only measured the VAE",
    }
