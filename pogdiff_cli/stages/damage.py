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
from pogdiff_cli.project.receipts import manifest_from_receipts
from pogdiff_cli.stages.files_check import Files
from pogdiff_cli.stages.finding import Finding
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
    """Read the manifest, or find out what receipts say; one of a newer version raises PogdiffError."""
    path = project.manifest_path
    if not path.exists():
        manifest = manifest_from_receipts(project, program=__version__)
        made = any(project.artifacts.glob("*")) or any((project.root / "runs").glob("*"))
        lost = _lost(manifest, "missing", f"is gone, and {CONFIG_NAME} is there") if made else None
        return Facts(manifest=manifest, finding=lost)
    try:
        return Facts(manifest=project.manifest())
    except (PogdiffError, OSError, ValueError) as problem:
        if _from_newer(path):
            raise
        manifest = manifest_from_receipts(project, program=__version__)
        reason = str(getattr(problem, "message", problem)).removeprefix(str(path)).strip(": ")
        return Facts(manifest=manifest, finding=_lost(manifest, "damaged", reason.rstrip(".")))


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
    recorded = sum(len(record.outputs) for _, record in all_records(manifest) if record.state == "done")
    return Examined(findings=tuple(findings), recorded=recorded, at_work=at_work)


def _all(outputs: Outputs, files: Files, at_work: Literal["nobody", "somebody"]) -> Iterator[Finding]:
    yield from outputs.findings()
    yield from files.checkpoints()
    yield from files.caches()
    yield from files.small_files()
    if at_work == "nobody":
        yield from files.leftovers()


def _lost(manifest: Manifest, state: Literal["damaged", "missing"], detail: str) -> Finding:
    stages = sum(1 for _ in all_records(manifest))
    advice = f"{stages} finished stages have receipts" if stages else "there are no receipts: every stage runs again"
    return Finding(path=MANIFEST_NAME, state=state, detail=detail, remedy="make again", advice=advice)


def _from_newer(path: Path) -> bool:
    """Whether a manifest says, readable or not, that a newer version wrote it."""
    try:
        found = re.search(rb"^schema_version:\s*(\d{1,9})\s*$", path.read_bytes(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and int(found[1]) > SCHEMA
