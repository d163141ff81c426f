"""Runs a job with the program's own command line and files its scores, a line a job: a study can go on later."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import RESULTS, versions
from benchmarks.sides import ROOT
from benchmarks.study.grid import Job

FILED = RESULTS / "study"
METRICS = (
    "fid",
    "similarity",
    "recall",
    "identity",
    "bleed",
    "mean_gap_unbiased",
    "fid_mean_part",
    "fid_trace_part",
    "copy",
)


def file_of(job: Job, folder: Path = FILED) -> Path:
    """Where the results of a regime and split stand."""
    return folder / f"{job.regime}-{job.split}.jsonl"


def filed(path: Path) -> list[dict[str, Any]]:
    """Every result in a file; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def is_filed(job: Job, folder: Path = FILED) -> bool:
    """Whether the job was done with just these settings."""
    settings = json.loads(json.dumps(dict(job.settings)))
    return any(
        (found["condition"], found["seed"]) == (job.condition, job.seed) and found["settings"] == settings
        for found in filed(file_of(job, folder))
    )


def run(job: Job, work: Path, folder: Path = FILED) -> dict[str, Any]:
    """Train, sample, score and file one job. The project is kept for its samples; its weights are removed."""
    project = _project(job, work)
    name = job.condition.replace(" ", "-")
    words = [word for key, value in job.settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    train = _pogdiff("train", "-C", str(project), "--name", name, *words)
    scored = _pogdiff("evaluate", "-C", str(project), "--run", name, *words)
    there = project / "runs" / name
    scores = json.loads((there / "evaluation" / "scores.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (there / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {
        "condition": job.condition,
        "seed": job.seed,
        "settings": dict(job.settings),
        "train_seconds": train["seconds"],
        "train_peak_mib": train["peak_mib"],
        "score_seconds": scored["seconds"],
        "denoise": _last(log, "denoise"),
        "neighbour": _last(log, "neighbour"),
        "versions": {name: versions()[name] for name in ("pogdiff", "torch", "diffusers")},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "identities": [_identity(entry) for entry in scores["per_identity"]],
    }
    path = file_of(job, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    for weights in ("checkpoints", "final"):
        shutil.rmtree(there / weights, ignore_errors=True)
    return found


def _project(job: Job, work: Path) -> Path:
    """One project for all jobs that share captions, neighbours and density."""
    shared = {key: value for key, value in job.settings.items() if key.split(".")[0] in {"caption", "index", "seed"}}
    shared |= {
        key: value for key, value in job.settings.items() if key.startswith("density.") and key != "density.mean"
    }
    mark = hashlib.sha256(json.dumps([job.regime, job.split, shared], sort_keys=True).encode()).hexdigest()[:8]
    project = work / f"{job.regime}-{job.split}-{job.seed}-{mark}"
    if not (project / "pogdiff.yaml").is_file():
        shutil.rmtree(project, ignore_errors=True)
        _pogdiff("init", str(project), "--template", "faces")
        if job.split == "choice":
            change_places(project / "data" / "metadata.jsonl")
    return project


def change_places(metadata: Path, seed: int = 20) -> None:
    """Heads become tails and tails heads: as many training photographs as before, drawn anew."""
    draw = np.random.default_rng(seed)
    records = [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines()]
    by_person: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_person.setdefault(record["identity"], []).append(record)
    for own in by_person.values():
        kept = sum(record["split"] == "train" for record in own)
        chosen = set(draw.permutation(len(own))[: len(own) - kept].tolist())
        for place, record in enumerate(own):
            record["split"] = "train" if place in chosen else "heldout"
    metadata.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _identity(entry: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: entry["metrics"].get(name) for name in METRICS}
    rounded = {name: None if value is None else float(f"{value:.6g}") for name, value in values.items()}
    return {"who": entry["identity"], "shot": entry["shot"], **rounded}


def _last(log: list[dict[str, Any]], name: str) -> float | None:
    """Mean over the last fifth of what was logged."""
    values = [line[name] for line in log if name in line]
    return float(f"{np.mean(values[-max(1, len(values) // 5) :]):.5g}") if values else None


def _pogdiff(*words: str) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pogdiff_cli", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"pogdiff {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of all children so far
    return {"seconds": round(time.monotonic() - started, 1), "peak_mib": round(peak / 1024, 1)}
