"""What every stage is given, and the one way in which each checks, runs and records itself."""

from __future__ import annotations

import datetime
import importlib.metadata
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pogdiff_cli import __version__
from pogdiff_cli.engine.devices import Devices
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.atomic import full_disk_explained
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.lineage import Freshness, StagePlan, freshness
from pogdiff_cli.project.locks import locked
from pogdiff_cli.project.manifest import Manifest, StageRecord

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "faiss-cpu", "numpy", "pillow", "scipy")


def _silent(message: str) -> None:
    del message


@dataclass(frozen=True, kw_only=True)
class Context:
    """A project, how the command was typed, and where progress goes."""

    project: Project
    devices: Devices
    command: str
    track: Track = untracked
    say: Callable[[str], None] = _silent
    mode: Literal["normal", "force", "dry-run"] = "normal"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    prerequisites: Literal["run", "refuse"] = "run"

    def quietly(self) -> Context:
        """The same without ``--force``: for stages that are only prerequisites."""
        return replace(self, mode="normal" if self.mode == "force" else self.mode)


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a stage ended, and the facts worth showing (JSON values)."""

    key: str
    state: Literal["done", "up to date", "planned"]
    facts: dict[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a stage's body hands back: facts for the manifest and for the screen."""

    facts: dict[str, Any] = field(default_factory=dict)


Attempt = Literal["go on", "anew"]
Body = Callable[[Attempt], Made]


def perform(context: Context, plan: StagePlan, inputs: Mapping[str, str], body: Body) -> Result:
    """Run ``body`` unless the manifest shows that nothing changed; record it, last of all.

    The body is told whether an earlier attempt had the same parameters and inputs: then what that attempt left
    behind is its own, and it goes on there; otherwise it starts anew.
    """
    project = context.project
    state = freshness(project, plan, inputs, {})
    if state.fresh and context.mode != "force":
        record = project.manifest().record(plan.key)
        return Result(key=plan.key, state="up to date", facts=dict(record.facts) if record else {})
    if context.mode == "dry-run":
        return Result(key=plan.key, state="planned", reasons=state.reasons)
    lock = project.cache / "locks" / (plan.key.replace("/", "-") + ".lock")
    with locked(lock, f"The stage '{plan.key}' of {project.root.name}", context.command):
        return _run(context, plan, inputs, body, state)


def _run(context: Context, plan: StagePlan, inputs: Mapping[str, str], body: Body, state: Freshness) -> Result:
    project = context.project
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    clock = time.monotonic()
    record = StageRecord(
        command=context.command,
        state="running",
        parameters=plan.parameters,
        inputs=dict(inputs),
        devices=context.devices.names,
        versions=versions(),
        started=started,
    )
    before = project.manifest().record(plan.key)
    same = before is not None and before.parameters == plan.parameters and before.inputs == dict(inputs)
    update(context, plan.key, record)
    try:
        with full_disk_explained(project.root):
            made = body("go on" if same and context.mode != "force" else "anew")
    except BaseException:
        update(context, plan.key, record.model_copy(update={"state": "failed"}))
        raise
    outputs = {path: project.digests.of(project.root / path) for path in plan.outputs}
    missing = [path for path, digest in outputs.items() if digest is None]
    if missing:
        raise PogdiffError(f"The stage '{plan.key}' ended without writing {', '.join(missing)}.")
    done = record.model_copy(
        update={
            "state": "done",
            "outputs": {path: str(digest) for path, digest in outputs.items()},
            "duration_seconds": round(time.monotonic() - clock, 3),
            "facts": made.facts,
        }
    )
    update(context, plan.key, done)
    project.digests.save()
    return Result(key=plan.key, state="done", facts=made.facts, reasons=state.reasons)


def update(context: Context, key: str, record: StageRecord) -> None:
    """Put one record into the manifest on disk, under its lock."""
    project = context.project
    with locked(project.cache / "locks" / "manifest.lock", "The manifest", context.command, wait=30):
        manifest = project.manifest()
        _stamp(manifest, context)
        manifest.put(key, record)
        project.write_manifest(manifest)


def versions() -> dict[str, str]:
    """Versions of this package and of those that can change a result."""
    found = {"pogdiff": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _stamp(manifest: Manifest, context: Context) -> None:
    manifest.pogdiff = __version__
    manifest.project = context.project.root.name
    known = {(device.kind, device.uuid or device.name) for device in manifest.devices}
    for device in context.devices.used:
        if (device.kind, device.uuid or device.name) not in known:
            manifest.devices.append(device)
