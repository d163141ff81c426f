"""What finished stages wrote, held against the digests that the manifest records: changed since, or gone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.manifest import Manifest, StageRecord


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A file or folder that is not what its stage wrote."""

    path: str  # relative to the project
    key: str  # of the stage: ``caption``, ``runs/NAME/train``
    problem: Literal["changed", "missing"]

    @property
    def command(self) -> str:
        """What makes it again."""
        if not self.key.startswith("runs/"):
            return f"pogdiff {self.key}"
        _, run, stage = self.key.split("/", 2)
        return f"pogdiff {stage} {'--name' if stage == 'train' else '--run'} {run}"

    def __str__(self) -> str:
        if self.problem == "missing":
            return f"{self.path} is missing, which '{self.command}' wrote."
        return f"{self.path} is not what '{self.command}' wrote: it was changed or damaged since."


def damaged(project: Project, paths: Collection[str] | None = None) -> list[Damage]:
    """The outputs, and with names given also the logs, of finished stages that are not as they were written.

    ``paths``: only these, relative to the project. What no finished stage is known to have written is not judged.
    """
    found = []
    for key, record in _finished(project.manifest()):
        known = record.outputs if paths is None else {**record.outputs, **record.logs}
        for path, digest in known.items():
            if paths is not None and path not in paths:
                continue
            now = project.digests.of(project.root / path)
            if now != digest:
                found.append(Damage(path=path, key=key, problem="missing" if now is None else "changed"))
    return found


def refuse_damaged(project: Project, paths: Collection[str]) -> None:
    """Exit 4, naming the file and the command, where one of ``paths`` is not what its stage wrote."""
    found = damaged(project, paths)
    if found:
        commands = dict.fromkeys(damage.command for damage in found)
        raise PogdiffError(
            "\n".join(map(str, found)),
            hint=f"To make it again, type: {' && '.join(commands)}",
            exit_code=Exit.MISSING,
        )


def _finished(manifest: Manifest) -> Iterator[tuple[str, StageRecord]]:
    for key, record in manifest.stages.items():
        if record.state == "done":
            yield key, record
    for run, stages in manifest.runs.items():
        for stage, record in stages.items():
            if record.state == "done":
                yield f"runs/{run}/{stage}", record
