"""``manifest.yaml``: the program's facts. Which stage made what, from what, with what, on which devices."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import write_text
from pogdiff_cli.project.digests import digest_value
from pogdiff_cli.project.yaml_reader import MAX_OWN_BYTES, read_yaml
from pogdiff_cli.project.yaml_writer import dump_yaml

SCHEMA = 1
_DIGEST = "digest"  # of all the rest
_REMEDY = "Type 'pogdiff doctor --repair': it is set aside and made again from what is there."
_HEADER = "# Written by pogdiff: facts about what was made, from what and how. Change pogdiff.yaml instead.\n"


class Fact(BaseModel):
    """A part of the manifest; unknown keys are damage, not extensions."""

    model_config = ConfigDict(extra="forbid")


class Device(Fact):
    """One device that a stage ran on."""

    kind: Literal["cuda", "cpu", "mps"]
    index: int = 0
    name: str = ""
    uuid: str = ""
    memory_bytes: int = 0
    compute_capability: str = ""
    driver: str = ""


class StageRecord(Fact):
    """One stage: how it was asked for, what it read and wrote (path or name to digest), how it ended."""

    command: str
    state: Literal["running", "done", "failed"]
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, str] = Field(default_factory=dict)
    logs: dict[str, str] = Field(default_factory=dict)  # what it wrote for people to read: no stage reads it
    devices: list[str] = Field(default_factory=list)  # of the main process's machine
    processes: int = 1
    holder: str = ""  # while it runs: which process on which machine has the devices
    versions: dict[str, str] = Field(default_factory=dict)
    started: str = ""
    order: int = 0  # counts what was started in this project; a clock may go back
    duration_seconds: float = 0.0
    facts: dict[str, Any] = Field(default_factory=dict)

    @field_validator("outputs", "logs")
    @classmethod
    def _lie_inside(cls, value: dict[str, str]) -> dict[str, str]:
        """What is compared, set aside and collected as garbage by these names lies in the project."""
        for path in value:
            if path.startswith("/") or ".." in path.split("/"):
                raise ValueError(f"{path!r} leads out of the project")
        return value


class Manifest(Fact):
    """The whole file. ``stages`` by stage name; ``runs`` by run name, then by stage name."""

    schema_version: int = SCHEMA
    pogdiff: str = ""
    project: str = ""
    devices: list[Device] = Field(default_factory=list)
    quarantine: dict[str, str] = Field(default_factory=dict)
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    runs: dict[str, dict[str, StageRecord]] = Field(default_factory=dict)

    def record(self, key: str) -> StageRecord | None:
        """The record of ``caption`` or of ``runs/NAME/train``."""
        if key.startswith("runs/"):
            _, run, stage = key.split("/", 2)
            return self.runs.get(run, {}).get(stage)
        return self.stages.get(key)

    def next_order(self) -> int:
        """One more than that of anything started so far."""
        every = [*self.stages.values(), *(record for run in self.runs.values() for record in run.values())]
        return 1 + max((record.order for record in every), default=0)

    def put(self, key: str, record: StageRecord) -> None:
        """Set the record of ``caption`` or of ``runs/NAME/train``."""
        if key.startswith("runs/"):
            _, run, stage = key.split("/", 2)
            self.runs.setdefault(run, {})[stage] = record
        else:
            self.stages[key] = record


def read_manifest(path: Path) -> Manifest:
    """Read and check; raises PogdiffError where the file is damaged or from a newer version."""
    try:
        status = path.stat()
    except OSError:
        return _read(path, ())
    state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return _read(path, state).model_copy(deep=True)


@functools.lru_cache(maxsize=4)  # with many runs, parsing takes long, and every stage asks several times
def _read(path: Path, state: tuple[int, ...]) -> Manifest:
    del state  # part of the cache's key: another state of the file is read anew
    values = _values(path)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise PogdiffError(
            f"{path} has schema {version}; this pogdiff knows up to {SCHEMA}.",
            hint="Install the newer pogdiff that wrote it.",
            exit_code=Exit.FAILURE,
        )
    _refuse_altered(path, values)
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "its first line"
        raise PogdiffError(
            f"{path} is damaged at '{place}': {first['msg']}.",
            hint=_REMEDY,
            exit_code=Exit.FAILURE,
        ) from None
    if "stages" not in manifest.model_fields_set:  # every version writes it, though it be empty
        raise PogdiffError(f"{path} is cut off.", hint=_REMEDY, exit_code=Exit.FAILURE)
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the file, whole or not at all. It begins with a digest of itself."""
    values = json.loads(json.dumps(manifest.model_dump(mode="json")))
    version = values.pop("schema_version")
    digest = digest_value({"schema_version": version, **values})
    write_text(path, _HEADER + dump_yaml({"schema_version": version, _DIGEST: digest, **values}))


def _values(path: Path) -> Any:
    """What the file says."""
    try:
        values = read_yaml(path, at_most=MAX_OWN_BYTES).values
    except PogdiffError as problem:
        raise PogdiffError(problem.message, hint=_REMEDY, exit_code=problem.exit_code) from problem
    return {} if values is None else values


def _refuse_altered(path: Path, values: Any) -> None:
    """Facts that nobody can look up again are not trusted where they are not what was written.

    Without the line nothing is known: older versions wrote none, and whoever merges two manifests takes it out.
    """
    if isinstance(values, dict) and _DIGEST in values and values.pop(_DIGEST) != digest_value(values):
        raise PogdiffError(
            f"{path} is not as pogdiff wrote it: its digest does not hold.",
            hint=f"{_REMEDY} If you changed it on purpose, take its line '{_DIGEST}:' out.",
            exit_code=Exit.FAILURE,
        )
