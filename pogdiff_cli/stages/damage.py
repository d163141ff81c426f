"""Everything that the program wrote into a project, against what it recorded of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pogdiff_cli import __version__
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.digests import Digests
from pogdiff_cli.project.layout import CONFIG_NAME, MANIFEST_NAME, Project
from pogdiff_cli.project.locks import in_use
from pogdiff_cli.project.manifest import SCHEMA, Manifest
from pogdiff_cli.project.receipts import completed
from pogdiff_cli.stages.files_check import Files
from pogdiff_cli.stages.finding import Finding, named
from pogdiff_cli.stages.images_check import turned_images
from pogdiff_cli.stages.outputs_check import Outputs, all_records

Depth = Literal["quick", "every byte"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The manifest as it is, or as it is made again where it is damaged or missing."""

    manifest: Manifest
    finding: Finding | None = None


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What was found; ``recorded`` outputs were compared."""

    findings: tuple[Finding, ...]
    recorded: int
    at_work: Literal["nobody", "somebody"]


def facts_of(project: Project) -> Facts:
    """Read the manifest, and find out what receipts say beyond it; one of a newer version raises PogdiffError."""
    path = project.manifest_path
    empty = Manifest(pogdiff=__version__, project=project.root.name)
    if not path.exists():
        made = any(project.artifacts.glob("*")) or any((project.root / "runs").glob("*"))
        lost = _lost(project, empty, "missing", f"is gone, and {CONFIG_NAME} is there")
        return lost if made else Facts(manifest=empty)
    try:
        manifest = project.manifest()
    except (PogdiffError, OSError, ValueError) as problem:
        if _from_newer(path):
            raise
        reason = str(getattr(problem, "message", problem)).removeprefix(str(path)).strip(": ")
        return _lost(project, empty, "damaged", reason.rstrip("."))
    whole = manifest.model_copy(deep=True)
    lacking = completed(whole, project)
    if lacking:
        return _lost(project, manifest, "damaged", f"says nothing of {named(list(lacking))}")
    return Facts(manifest=manifest)


def examine(
    project: Project,
    manifest: Manifest,
    *,
    depth: Depth,
    reader: Digests,
    track: Track = untracked,
    alone: bool = False,
) -> Examined:
    """Compare what lies in the project with the manifest. ``alone``: this process keeps all others out."""
    at_work: Literal["nobody", "somebody"] = "nobody" if alone or not in_use(project.cache / "locks") else "somebody"
    outputs = Outputs(project=project, manifest=manifest, reader=reader, at_work=at_work)
    paths = outputs.paths()
    for path in track(paths, "Reading artifacts", len(paths)):
        reader.of(path)
    files = Files(project=project, reader=reader, depth=depth, track=track)
    findings = list(_all(outputs, files, at_work))
    if depth == "every byte":
        findings += turned_images(project, track=track)
    recorded = sum(len(record.outputs) for _, record in all_records(manifest) if record.state == "done")
    worst = {finding.path: finding for finding in sorted(findings, key=lambda finding: finding.hurts)}
    findings = [finding for finding in findings if finding is worst[finding.path]]  # one for each path
    return Examined(findings=tuple(findings), recorded=recorded, at_work=at_work)


def _all(outputs: Outputs, files: Files, at_work: Literal["nobody", "somebody"]) -> Iterator[Finding]:
    yield from outputs.findings()
    yield from files.checkpoints()
    yield from files.caches()
    yield from files.small_files()
    if at_work == "nobody":
        yield from files.leftovers()


def _lost(project: Project, left: Manifest, state: Literal["damaged", "missing"], detail: str) -> Facts:
    """What can be said again: what is left of the manifest, and receipts."""
    manifest = left.model_copy(deep=True)
    stages = len(completed(manifest, project))
    advice = f"{stages} finished stages have receipts" if stages else "there are no receipts: every stage runs again"
    finding = Finding(path=MANIFEST_NAME, state=state, detail=detail, remedy="make again", advice=advice)
    return Facts(manifest=manifest, finding=finding)


def _from_newer(path: Path) -> bool:
    """Whether a manifest says, readable or not, that a newer version wrote it."""
    try:
        found = re.search(rb"^schema_version:\s*(\d{1,9})\s*$", path.read_bytes(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and int(found[1]) > SCHEMA
