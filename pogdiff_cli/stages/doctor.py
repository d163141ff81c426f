"""``pogdiff doctor``: what is there, what is missing, and the command that mends it."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from pogdiff_cli.engine.devices import available, cpu
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.stages.context import Context, versions
from pogdiff_cli.stages.embeddings import open_extractor
from pogdiff_cli.stages.inputs import backbone_folder
from pogdiff_cli.stages.requirements import captioner_need, extractor_need, judge_need, scoring_extractors

_OPTIONAL = {
    "matplotlib": "pip install 'pogdiff[report]'  (report)",
    "tensorboard": "pip install 'pogdiff[trackers]'  (train.report_to)",
    "onnxruntime": "pip install 'pogdiff[onnx]'  (onnx: extractors)",
    "dlib": "pip install 'pogdiff[demo]'  (dlib extractor)",
    "pyarrow": "pip install 'pogdiff[parquet]'  (metadata.parquet)",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at.

    ``state``: ok, missing (needed by this project), damaged, noted (worth knowing) or absent (optional).
    """

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
        backbone_folder(context)
    except PogdiffError as problem:
        yield Check(name="model", state="missing", detail=problem.message, remedy=problem.hint or "")
    else:
        yield Check(name="model", state="ok", detail=project.config.pretrained_model_name_or_path)
    yield from _files(context)
    yield from _memory(context, free)
    for need in (captioner_need(project), judge_need(project)):
        if need is not None:
            yield _looked_at(need.name, "here", need.check)
    for spec in dict.fromkeys((project.config.index.extractor, *scoring_extractors(project))):
        need = extractor_need(project, spec)
        yield _looked_at(need.name, "loads", need.check, partial(open_extractor, context, spec))


def _files(context: Context) -> Iterator[Check]:
    """What the program wrote, as far as sizes and times tell; ``--repair`` reads every byte."""
    from pogdiff_cli.stages.damage import examine, facts_of

    project = context.project
    try:
        facts = facts_of(project)
    except PogdiffError as problem:
        yield Check(name="manifest.yaml", state="damaged", detail=problem.message, remedy=problem.hint or "")
        return
    examined = examine(project, facts.manifest, depth="quick", reader=project.digests, track=context.track)
    with contextlib.suppress(PogdiffError, OSError):  # a memory only
        project.digests.save()
    found = [*([facts.finding] if facts.finding else []), *examined.findings]
    findings = [finding for finding in found if finding.remedy != "receipt"]
    for finding in findings:
        state = finding.state if finding.hurts else "noted"
        yield Check(name=finding.path, state=state, detail=finding.detail, remedy=finding.advice)
    if facts.manifest.quarantine:
        image, reason = next(iter(facts.manifest.quarantine.items()))
        detail = f"{len(facts.manifest.quarantine)} images cannot be used, for instance {image}: {reason}"
        yield Check(name="quarantine", state="noted", detail=detail)
    if examined.at_work == "somebody":
        yield Check(name="files", state="noted", detail="another command is at work: what it is writing is left out")
    if not any(finding.hurts for finding in findings):
        yield Check(name="files", state="ok", detail=f"{examined.recorded} artifacts are as the manifest records them")
    if any(finding.remedy not in ("none", "next run") for finding in findings):
        advice = "pogdiff doctor --repair   (with --dry-run it only says what it would do)"
        yield Check(name="files", state="noted", detail="there is something to put in order", remedy=advice)


def _looked_at(name: str, found: str, *checks: Callable[[], object]) -> Check:
    try:
        for check in checks:
            check()
    except PogdiffError as problem:
        return Check(name=name, state="missing", detail=problem.message, remedy=problem.hint or "")
    return Check(name=name, state="ok", detail=found)


def _memory(context: Context, free: int) -> Iterator[Check]:
    """Sizes from the configurations alone; activations come on top and depend on the batch."""
    from pogdiff_cli.engine.estimate import estimate
    from pogdiff_cli.models.weights import resolve_pipeline

    project, train = context.project, context.project.config.train
    try:
        folder = resolve_pipeline(project.config.pretrained_model_name_or_path, project.root, weights="not needed")
        sizes = estimate(folder, train, device=context.devices.own)
    except PogdiffError:
        return  # what is missing has been said
    share = f", of which {sizes.trainable / 1e6:.2f} M are trained" if sizes.trainable != sizes.denoiser else ""
    yield Check(
        name="memory",
        state="ok",
        detail=f"{sizes.family}: {sizes.denoiser / 1e6:.1f} M parameters{share}; training {_gib(sizes.training)} and "
        f"activations; encoding before it {_gib(sizes.encoding)}",
    )
    # a new checkpoint is whole before an old one goes
    steps = (train.checkpoints_total_limit or -(-train.max_train_steps // train.checkpointing_steps)) + 1
    needed = sizes.checkpoint * steps + sizes.final
    yield Check(
        name="disk for a run",
        state="ok" if needed < free else "missing",
        detail=f"{_gib(needed)}: up to {steps} checkpoints of {_gib(sizes.checkpoint)}, and the result",
        remedy="" if needed < free else "Free some space, or lower train.checkpoints_total_limit.",
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
