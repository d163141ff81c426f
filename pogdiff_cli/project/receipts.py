"""A receipt for each finished stage: its record and the digest of every file that it wrote, under a digest of its own.

The manifest says the same of all stages in one file. Receipts tell which file of a folder is damaged, and a manifest
that is lost is made again from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from pogdiff_cli.project.atomic import write_text
from pogdiff_cli.project.digests import Digests, digest_value
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.manifest import Device, Fact, Manifest, StageRecord

SCHEMA = 1
_KEY = re.compile(r"(?:runs/[A-Za-z0-9][A-Za-z0-9._-]{0,63}/)?[a-z][a-z-]*\Z")


class Receipt(Fact):
    """What one stage wrote: for each folder among its outputs the digests of the files in it."""

    schema_version: int = SCHEMA
    key: str
    record: StageRecord
    devices: list[Device] = Field(default_factory=list)
    files: dict[str, dict[str, str]] = Field(default_factory=dict)


def receipt_path(project: Project, key: str) -> Path:
    """Where the receipt of ``caption`` or of ``runs/NAME/train`` lies; ValueError for what names no stage."""
    if not _KEY.match(key):
        raise ValueError(f"{key!r} names no stage")
    return project.artifacts / "receipts" / f"{key}.json"


def write_receipt(
    project: Project, key: str, record: StageRecord, *, devices: Sequence[Device], digests: Digests
) -> None:
    """Write it before the manifest is told: what a receipt says of files that have changed since, nobody believes."""
    folders = {path: project.root / path for path in record.outputs if (project.root / path).is_dir()}
    files = {path: digests.files(folder) for path, folder in folders.items()}
    body = Receipt(key=key, record=record, devices=list(devices), files=files).model_dump(mode="json")
    write_text(receipt_path(project, key), json.dumps({"digest": digest_value(body), "receipt": body}))


def read_receipt(path: Path) -> Receipt | None:
    """None where there is none, or one that is damaged or of a newer version."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        if digest_value(values["receipt"]) != values["digest"] or values["receipt"]["schema_version"] > SCHEMA:
            return None
        receipt = Receipt.model_validate(values["receipt"])
        return receipt if _KEY.match(receipt.key) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, ValidationError):
        return None


def receipts(project: Project) -> Iterator[Receipt]:
    """All that can be read."""
    folder = project.artifacts / "receipts"
    for path in sorted(folder.rglob("*.json")):
        receipt = read_receipt(path)
        if receipt is not None and path == receipt_path(project, receipt.key):
            yield receipt


def completed(manifest: Manifest, project: Project) -> tuple[str, ...]:
    """Add to a manifest every stage that a receipt speaks of and it does not, and say which; outputs are not looked at.

    Runs whose folders are gone stay forgotten.
    """
    lacking = [receipt for receipt in receipts(project) if manifest.record(receipt.key) is None]
    there = [receipt for receipt in lacking if _has_folder(project, receipt.key)]
    for receipt in sorted(there, key=lambda receipt: receipt.record.started):
        manifest.put(receipt.key, receipt.record)
        known = {(device.kind, device.uuid or device.name) for device in manifest.devices}
        manifest.devices += [d for d in receipt.devices if (d.kind, d.uuid or d.name) not in known]
    return tuple(receipt.key for receipt in there)


def _has_folder(project: Project, key: str) -> bool:
    return not key.startswith("runs/") or project.run(key.split("/")[1]).folder.is_dir()
