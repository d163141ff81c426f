"""``pogdiff doctor``: what is there, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pogdiff_cli.engine.devices import available, cpu
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.project.layout import Project
from pogdiff_cli.stages.context import Context, versions
from pogdiff_cli.stages.embeddings import open_extractor
from pogdiff_cli.stages.inputs import backbone_folder

_OPTIONAL = {
    "matplotlib": "pip install 'pogdiff[report]'  (report)",
    "tensorboard": "pip install 'pogdiff[trackers]'  (train.report_to)",
    "onnxruntime": "pip install 'pogdiff[onnx]'  (onnx: extractors)",
    "dlib": "pip install 'pogdiff[demo]'  (dlib extractor)",
    "pyarrow": "pip install 'pogdiff[parquet]'  (metadata.parquet)",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at. ``state``: ok, missing (needed by this project) or absent (optional)."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def run(context: Context | None) -> list[Check]:
    """All checks; those of the project only where there is one."""
    checks = [*_machine()]
    if context is not None:
        checks += [*_project(context)]
    return checks


def _machine() -> Iterator[Check]:
    yield Check(name="python", state="ok", detail=sys.version.split()[0])
    found = versions()
    yield Check(name="packages", state="ok", detail=", ".join(f"{name} {version}" for name, version in found.items()))
    devices = available() or (cpu(),)
    for device in devices:
        memory = f"{device.memory_bytes / 2**30:.1f} GiB"
        yield Check(name=f"device {device.index}", state="ok", detail=f"{device.kind}: {device.name}, {memory}")
    for package, remedy in _OPTIONAL.items():
        present = importlib.util.find_spec(package) is not None
        state, detail = ("ok", "installed") if present else ("absent", "not installed")
        yield Check(name=package, state=state, detail=detail, remedy="" if present else remedy)


def _project(context: Context) -> Iterator[Check]:
    project = context.project
    free = shutil.disk_usage(project.root).free
    yield Check(name="disk", state="ok", detail=f"{free / 2**30:.1f} GiB free")
    try:
        folder = backbone_folder(context)
    except PogdiffError as problem:
        yield Check(name="model", state="missing", detail=problem.message, remedy=problem.hint or "")
    else:
        yield Check(name="model", state="ok", detail=project.config.pretrained_model_name_or_path)
        yield from _memory(project, folder)
    specs = dict.fromkeys((project.config.index.extractor, project.config.evaluate.face, project.config.evaluate.dino))
    for spec in specs:
        try:
            open_extractor(context, spec)
        except PogdiffError as problem:
            yield Check(name=f"extractor {spec}", state="missing", detail=problem.message, remedy=problem.hint or "")
        else:
            yield Check(name=f"extractor {spec}", state="ok", detail="loads")


def _memory(project: Project, folder: Path) -> Iterator[Check]:
    """Weights, gradients and optimizer state; activations come on top and depend on the batch."""
    try:
        parameters = _parameters(folder)
    except PogdiffError as problem:
        yield Check(name="memory", state="missing", detail=problem.message, remedy=problem.hint or "")
        return
    train = project.config.train
    copies = 4 + (1 if train.use_ema else 0) if train.tuning == "full" else 1
    needed = parameters * 4 * copies
    steps = min(train.checkpoints_total_limit or 4, 4)
    disk = parameters * 4 * ((4 if train.use_ema else 3) * steps + 1) if train.tuning == "full" else parameters // 10
    yield Check(
        name="memory",
        state="ok",
        detail=f"{parameters / 1e6:.1f} M parameters; {needed / 2**30:.2f} GiB and activations; "
        f"checkpoints up to {disk / 2**30:.2f} GiB",
    )


def _parameters(folder: Path) -> int:
    """Size of the network to train, from its configuration alone."""
    import diffusers
    import torch

    from pogdiff_cli.models.families import family_of
    from pogdiff_cli.models.weights import read_json

    family = family_of(folder)
    config = read_json(folder / family.denoiser_name / "config.json")
    with torch.device("meta"):
        model = getattr(diffusers, family.parts[family.denoiser_name]).from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())
