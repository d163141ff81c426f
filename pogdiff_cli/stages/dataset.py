"""The images and records that a stage works on: read strictly, decoded once, the unusable ones set aside by name."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.data.records import Records, read_records
from pogdiff_cli.data.scan import digest_of, refuse_too_many_problems, scan
from pogdiff_cli.data.shots import shots
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import made_folder
from pogdiff_cli.project.locks import locked
from pogdiff_cli.stages.context import Context


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Usable records (train and held out) in the metadata's order, with each image's digest."""

    records: Records
    sha256: list[str]
    sizes: NDArray[np.int64]  # (n, 2) width, height
    digest: str
    images: Path
    quarantined: dict[str, str]

    @property
    def train_rows(self) -> NDArray[np.int64]:
        """Rows that are trained on."""
        return np.flatnonzero(~self.records.heldout)

    def paths(self, rows: NDArray[np.int64]) -> list[Path]:
        """Files of some rows."""
        return [self.images / self.records.file_names[row] for row in rows]

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        """Content digests of some rows' images."""
        return [self.sha256[row] for row in rows]

    def train_counts(self) -> NDArray[np.int64]:
        """Training images of each identity code."""
        identity = self.records.identity[~self.records.heldout]
        return np.bincount(identity, minlength=len(self.records.identity_names)).astype(np.int64)


def load_dataset(context: Context) -> Dataset:
    """Read, decode and digest; too many unusable images, or none to train on, is an error (exit 3).

    The main process scans, and the others read what it has written.
    """
    if context.world.main:
        with context.world.alone():
            dataset = _load_dataset(context)
        context.world.say("scanned")
        return dataset
    context.world.hear()
    return _load_dataset(context)


def _load_dataset(context: Context) -> Dataset:
    project = context.project
    records = read_records(project.images, project.metadata)
    cache = project.cache / "scan.jsonl"
    with contextlib.suppress(OSError):  # a project that may only be read is read all the same
        made_folder(cache.parent)
    known = cache if cache.parent.is_dir() else None
    found = scan(records, project.images, cache=known, track=context.track)
    refuse_too_many_problems(found, at_most=project.config.data.max_unreadable)
    quarantined = {problem.file_name: problem.reason for problem in found.problems}
    _record_quarantine(context, quarantined)
    usable = records.select(found.ok)
    return Dataset(
        records=usable,
        sha256=[found.sha256[row] for row in np.flatnonzero(found.ok)],
        sizes=found.sizes[found.ok],
        digest="sha256:" + digest_of(records, found),
        images=project.images,
        quarantined=quarantined,
    )


def refuse_untrainable(dataset: Dataset) -> None:
    """Training on neighbours needs two images at least."""
    if len(dataset.train_rows) == 0:
        raise PogdiffError(
            "No image is in the training split.",
            hint="Give some records of the metadata the split 'train'.",
            exit_code=Exit.DATA,
        )
    if len(dataset.train_rows) < 2:
        raise PogdiffError(
            "There is one training image only; a neighbour needs another.",
            hint="Add images, or check the 'split' column.",
            exit_code=Exit.DATA,
        )


def groups(context: Context, dataset: Dataset) -> list[str]:
    """many, medium or few for each identity code, by training count."""
    data = context.project.config.data
    counts = dataset.train_counts()
    return [str(g) for g in shots(counts, few_at_most=data.few_at_most, many_at_least=data.many_at_least)]


def _record_quarantine(context: Context, quarantined: dict[str, str]) -> None:
    project = context.project
    if context.mode == "dry-run" or not context.world.main or project.manifest().quarantine == quarantined:
        return
    with locked(project.cache / "locks" / "manifest.lock", "The manifest", context.command, wait=30):
        manifest = project.manifest()
        manifest.quarantine = quarantined
        project.write_manifest(manifest)
    if quarantined:
        context.say(f"{len(quarantined)} images cannot be used and are set aside (manifest.yaml: quarantine).")
