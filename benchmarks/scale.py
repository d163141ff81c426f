"""A million records: neighbours and text density of 1,000,000 x 384 vectors, and a walk through the command line.

    python -m benchmarks.scale [--part neighbours|hard|density|walk] [--records 1000000]

Every part runs in a process of its own, so that its peak of memory is its own. What a part measured takes that
part's place in ``docs/results/scale.json``; the others stay.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.scale_data import DIM, ROOT, clustered_vectors, isotropic_vectors, make_project

RESULTS = results.RESULTS / "scale.json"
PARTS = ("neighbours", "hard", "density", "walk")


def main() -> int:
    """Measure, print and record."""
    options = _options()
    if options.measure:
        print(json.dumps(_measured(options.measure, Path(options.vectors))))
        return 0
    for part in [options.part] if options.part else PARTS:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            found = _walk(Path(scratch), options.records) if part == "walk" else _vectors(part, Path(scratch), options)
        print(json.dumps({part: found}, indent=1), flush=True)
        _record(part, found)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--scratch", help="folder for generated data (1.6 GB of vectors; 10 GB of pictures and caches)")
    parser.add_argument("--measure", choices=PARTS[:3], help=argparse.SUPPRESS)
    parser.add_argument("--vectors", help=argparse.SUPPRESS)
    return parser.parse_args()


def _vectors(part: str, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    make = isotropic_vectors if part == "hard" else clustered_vectors
    path = make(scratch / "vectors.npy", options.records)
    done = _timed([sys.executable, "-m", "benchmarks.scale", "--measure", part, "--vectors", str(path)])
    return {"vectors": [options.records, DIM], **_used(done), **json.loads(done["output"])}


def _measured(part: str, path: Path) -> dict[str, Any]:
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    started = time.monotonic()
    found = _density(vectors) if part == "density" else _neighbours(vectors)
    return {"call_seconds": round(time.monotonic() - started, 1), **found}


def _neighbours(vectors: np.ndarray) -> dict[str, Any]:
    from pogdiff_cli.models.neighbours import nearest

    found = nearest(vectors, 5)
    recall = found.recall
    if recall is None:
        return {"search": "exact"}
    return {
        "search": "approximate",
        "recall_at_5": round(recall.value, 4),
        "recall_standard_error": round(recall.standard_error, 4),
        "recall_rows": len(recall.rows),
        "lists": recall.lists,
        "probed": recall.probed,
        "notes": list(found.notes),
    }


def _density(vectors: np.ndarray) -> dict[str, Any]:
    from pogdiff_cli.models.density import fit_density

    fit = fit_density(vectors, seed=0)
    return {
        "steps": len(fit.loss_curve),
        "samples": fit.measured.samples,
        "precision": fit.measured.precision,
        "standard_error": float(f"{fit.measured.standard_error:.3g}"),
        "rounding_error": float(f"{fit.measured.rounding_error:.3g}"),
        "spread": float(f"{fit.log_density.std():.4g}"),
    }


def _walk(scratch: Path, records: int) -> dict[str, Any]:
    started = time.monotonic()
    project = make_project(scratch / "project", records)
    found: dict[str, Any] = {"records": records, "generated_seconds": round(time.monotonic() - started, 1)}
    for stage in ("caption", "index", "fit-density"):
        done = _timed([sys.executable, "-m", "pogdiff_cli", stage, "-C", str(project), "--gpus", "none"])
        found[stage] = _used(done)
        print(stage, found[stage], flush=True)
    for stage in ("index", "density"):
        name = "index.json" if stage == "index" else "diagnostics.json"
        found[f"{stage}_facts"] = json.loads((project / "artifacts" / stage / name).read_text(encoding="utf-8"))
    usage = shutil.disk_usage(project)
    found["disk_free_gib_after"] = round(usage.free / 2**30, 1)
    return found


def _timed(command: list[str]) -> dict[str, Any]:
    """Run to the end: seconds, peak of resident memory (mapped files included) and what was written."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=output, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_kib": usage.ru_maxrss, "output": text}


def _used(done: dict[str, Any]) -> dict[str, Any]:
    return {
        "seconds": round(done["seconds"], 1),
        "cpu_seconds": round(done["cpu_seconds"], 1),
        "peak_gib": round(done["peak_kib"] / 2**20, 2),
    }


def _record(part: str, found: dict[str, Any]) -> None:
    content = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    content[part] = {
        "command": " ".join(["python", "-m", "benchmarks.scale", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": results.machine(),
        "versions": results.versions(),
        **found,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
