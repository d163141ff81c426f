"""What every stage is given, and the one way in which each checks, runs and records itself."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pogdiff_cli import __version__
from pogdiff_cli.engine.devices import Devices
from pogdiff_cli.engine.world import World
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.atomic import full_disk_explained, sweep_for
from pogdiff_cli.project.freshness import Freshness, as_asked, freshness
from pogdiff_cli.project.integrity import refuse_damaged
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.leases import leased
from pogdiff_cli.project.lineage import StagePlan
from pogdiff_cli.project.locks import locked, project_lock
from pogdiff_cli.project.manifest import Manifest, StageRecord
from pogdiff_cli.project.receipts import receipt_path, write_receipt

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "faiss-cpu", "numpy", "pillow", "scipy")


def _silent(message: str) -> None:
    del message


def _nothing() -> None:
    """Nothing to clear."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """A project, how the command was typed, and where progress goes."""

    project: Project
    devices: Devices
    command: str
    world: World = field(default_factory=World)
    processes: int = 1  # that were asked for; a dry run does not start them
    sharing: Literal["exclusive", "shared"] = "exclusive"  # of GPUs, with other commands of this project
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
Hands = Literal["main", "all"]


def perform(
    context: Context,
    plan: StagePlan,
    inputs: Mapping[str, str],
    body: Body,
    *,
    hands: Hands = "main",
    clear: Callable[[], None] = _nothing,
) -> Result:
    """Run ``body`` unless the manifest shows that nothing changed; record it, last of all.

    The body is told whether an earlier attempt had the same parameters and inputs: then what that attempt left
    behind is its own, and it goes on there; otherwise it starts anew. ``clear`` then removes what a body that goes on
    would take for its own; it does so before the manifest is told of this attempt, so that a crash in between leads
    to it again. With ``all`` hands every process runs the body; what it returns in the main one counts.
    """
    world = context.world
    if not world.main:
        return _lend_a_hand(context, body, hands)
    project = context.project
    state = freshness(project, plan, inputs, {})
    result: Result | None = None
    if state.fresh and context.mode != "force":
        record = project.manifest().record(plan.key)
        result = Result(key=plan.key, state="up to date", facts=dict(record.facts) if record else {})
    elif context.mode == "dry-run":
        result = Result(key=plan.key, state="planned", reasons=state.reasons)
    if result is not None:
        world.say({"result": asdict(result)})
        return result
    # what it reads has to be what was written: never scores of weights in which a bit has flipped
    refuse_damaged(project, [path for path in plan.inputs.values() if path is not None])
    if state.reasons and project.manifest().record(plan.key) is not None:
        context.say(f"{plan.key}: {'; '.join(state.reasons)}.")
    with (
        project_lock(project.cache / "locks", context.command, mode="shared"),
        stage_lock(context, plan),
        device_leases(context),
    ):
        result = _run(context, plan, inputs, body, state, hands, clear)
    world.say({"result": asdict(result)})
    return result


def stage_lock(context: Context, plan: StagePlan) -> AbstractContextManager[None]:
    """One writer at a time: of a stage that all runs share, or of one run's folder, whatever is done there."""
    project = context.project
    folder, what = project.cache / "locks", f"The stage '{plan.key}' of {project.root.name}"
    if not plan.key.startswith("runs/"):
        return locked(folder / f"{plan.key}.lock", what, context.command)
    run = plan.key.split("/")[1]
    return locked(folder / f"runs-{run}.lock", f"The run '{run}' of {project.root.name}", context.command)


@contextmanager
def command_lock(context: Context, name: str) -> Iterator[None]:
    """One writer at a time of what a command without a record writes."""
    folder = context.project.cache / "locks"
    with (
        project_lock(folder, context.command, mode="shared"),
        locked(folder / f"{name}.lock", f"'{name}' of {context.project.root.name}", context.command),
    ):
        yield


def device_leases(context: Context) -> AbstractContextManager[None]:
    """Hold this machine's GPUs while a stage runs, unless they are shared."""
    if context.sharing == "shared" or context.devices.local_rank != 0:
        return nullcontext()
    return leased(context.project.cache / "locks", context.devices.used, context.command)


def _lend_a_hand(context: Context, body: Body, hands: Hands) -> Result:
    """What the processes do that do not write: wait, or run the body too."""
    said = context.world.hear()
    if "attempt" in said:
        if hands == "all":
            with device_leases(context):
                body(said["attempt"])
        said = context.world.hear()
    result = said["result"]
    return Result(**{**result, "reasons": tuple(result["reasons"])})


def _run(
    context: Context,
    plan: StagePlan,
    inputs: Mapping[str, str],
    body: Body,
    state: Freshness,
    hands: Hands,
    clear: Callable[[], None],
) -> Result:
    project = context.project
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    clock = time.monotonic()
    known = project.manifest()
    record = StageRecord(
        command=context.command,
        state="running",
        parameters=plan.parameters,
        inputs=dict(inputs),
        devices=context.devices.names,
        processes=context.world.size,
        holder=f"process {os.getpid()} on {socket.gethostname()}",
        versions=versions(),
        started=started,
        order=known.next_order(),
    )
    before = known.record(plan.key)
    asked = None if before is None else as_asked(before, plan, inputs)
    same = asked is not None and asked.parameters == plan.parameters and asked.inputs == dict(inputs)
    attempt: Attempt = "go on" if same and context.mode != "force" else "anew"
    for path in (*(project.root / name for name in plan.outputs), receipt_path(project, plan.key)):
        sweep_for(path)
    if attempt == "anew":
        clear()
    update(context, plan.key, record)
    context.world.say({"attempt": attempt})
    try:
        with full_disk_explained(project.root), nullcontext() if hands == "all" else context.world.alone():
            made = body(attempt)
    except BaseException:
        with suppress(Exception):  # on a full disk, say: 'running' without a holder says as much
            update(context, plan.key, record.model_copy(update={"state": "failed", "holder": ""}))
        raise
    outputs = _digests(project, (*plan.outputs, *plan.extras))
    missing = [path for path in plan.outputs if path not in outputs]
    if missing:
        raise PogdiffError(f"The stage '{plan.key}' ended without writing {', '.join(missing)}.")
    done = record.model_copy(
        update={
            "state": "done",
            "holder": "",
            "outputs": outputs,
            "logs": _digests(project, plan.logs),
            "duration_seconds": round(time.monotonic() - clock, 3),
            "facts": made.facts,
        }
    )
    write_receipt(project, plan.key, done, devices=context.devices.used, digests=project.digests)
    update(context, plan.key, done)
    project.digests.save()
    return Result(key=plan.key, state="done", facts=made.facts, reasons=state.reasons)


def _digests(project: Project, paths: tuple[str, ...]) -> dict[str, str]:
    """Of those that are there."""
    found = {path: project.digests.of(project.root / path) for path in paths}
    return {path: digest for path, digest in found.items() if digest is not None}


def update(context: Context, key: str, record: StageRecord) -> None:
    """Put one record into the manifest on disk, under its lock."""
    project = context.project
    with locked(project.cache / "locks" / "manifest.lock", "The manifest", context.command, wait=30):
        sweep_for(project.manifest_path)
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
