"""``pogdiff doctor --repair``: what is damaged is set aside or made again; what the user made is left as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.project.aside import Aside, inside
from pogdiff_cli.project.atomic import write_text
from pogdiff_cli.project.digests import Digests
from pogdiff_cli.project.locks import locked, project_lock
from pogdiff_cli.project.manifest import Manifest
from pogdiff_cli.project.receipts import write_receipt
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.damage import examine, facts_of
from pogdiff_cli.stages.finding import Finding
from pogdiff_cli.stages.names_recovery import derive


@dataclass(frozen=True, kw_only=True)
class Treated:
    """A finding and what was done: "set aside", "would be set aside", "left alone" and so on."""

    finding: Finding
    done: str

    @property
    def remains(self) -> bool:
        """Whether it needs somebody's hand still."""
        return self.finding.hurts and self.finding.remedy == "none"


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """Everything that was found, and the folder of what was set aside."""

    treated: tuple[Treated, ...]
    recorded: int
    folder: str | None

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        found = [{**asdict(one.finding), "done": one.done, "remains": one.remains} for one in self.treated]
        return {"findings": found, "recorded": self.recorded, "set_aside": self.folder}


_WORDS = {
    "set aside": "set aside",
    "derive": "made again",
    "make again": "made again",
    "mark": "marked as not finished",
    "copy": "copied",
    "receipt": "written",
    "next run": "left to the next run",
    "none": "left alone",
}


def run(context: Context) -> Repaired:
    """Read every byte and put in order what can be; with ``--dry-run`` only say what would be done."""
    if context.mode == "dry-run":
        return _repaired(context, None)
    locks = context.project.cache / "locks"
    with project_lock(locks, context.command, mode="alone"):
        return _repaired(context, Aside(context.project.root))


def _repaired(context: Context, aside: Aside | None) -> Repaired:
    project = context.project
    facts = facts_of(project)
    reader = Digests(project.cache / "digests.json", trust="nothing")
    hands = None if aside is None else _Hands(context, aside, facts.manifest, reader)
    treated = []
    if facts.finding is not None:
        treated.append(_treat(facts.finding, hands))
    examined = examine(
        project, facts.manifest, depth="every byte", reader=reader, track=context.track, alone=aside is not None
    )
    treated += [_treat(finding, hands) for finding in examined.findings]
    if aside is not None:
        reader.save()
    return Repaired(treated=tuple(treated), recorded=examined.recorded, folder=None if aside is None else aside.name)


def _treat(finding: Finding, hands: _Hands | None) -> Treated:
    words = _WORDS[finding.remedy]
    if finding.remedy in ("none", "next run"):
        return Treated(finding=finding, done=words)
    if hands is None:
        return Treated(finding=finding, done=f"would be {words}")
    try:
        hands.apply(finding)
    except (PogdiffError, OSError) as problem:
        failed = replace(finding, remedy="none", advice=f"it could not be mended: {problem}")
        return Treated(finding=failed, done="left alone")
    return Treated(finding=finding, done=words)


class _Hands:
    """What repairs do to the disk: each is one rename, or one file that is replaced whole."""

    def __init__(self, context: Context, aside: Aside, manifest: Manifest, reader: Digests) -> None:
        self._context, self._project = context, context.project
        self._aside, self._manifest, self._reader = aside, manifest, reader
        self._by_remedy: dict[str, Callable[[Finding], None]] = {
            "set aside": self._set_aside,
            "derive": self._derive_names,
            "make again": self._make_manifest,
            "mark": self._mark,
            "receipt": self._write_receipt,
            "copy": lambda finding: self._aside.copy(self._project.root / finding.path, finding.detail),
        }

    def apply(self, finding: Finding) -> None:
        """Do what the finding says."""
        self._by_remedy[finding.remedy](finding)

    def _set_aside(self, finding: Finding) -> None:
        for name in finding.files or (finding.path,):
            path = self._project.root / name
            if not inside(self._project.root, path):
                raise PogdiffError("it is a link, or lies behind one that leads out of the project")
            if path.exists():
                self._aside.take(path, finding.detail)

    def _derive_names(self, finding: Finding) -> None:
        derived = derive(self._project)
        if derived is None:
            raise PogdiffError("the data cannot be read")
        if self._project.names.exists():
            self._aside.take(self._project.names, finding.detail)
        write_text(self._project.names, derived.text)

    def _make_manifest(self, finding: Finding) -> None:
        with self._manifest_lock():
            if self._project.manifest_path.exists():
                self._aside.take(self._project.manifest_path, finding.detail)
            self._project.write_manifest(self._manifest)

    def _write_receipt(self, finding: Finding) -> None:
        for key in finding.files:
            record = self._manifest.record(key)
            if record is not None:
                devices = [device for device in self._manifest.devices if device.name in record.devices]
                write_receipt(self._project, key, record, devices=devices, digests=self._reader)

    def _mark(self, finding: Finding) -> None:
        with self._manifest_lock():
            manifest = self._project.manifest()
            record = manifest.record(finding.path)
            if record is not None and record.state == "running":
                manifest.put(finding.path, record.model_copy(update={"state": "failed", "holder": ""}))
                self._project.write_manifest(manifest)

    @contextlib.contextmanager
    def _manifest_lock(self) -> Iterator[None]:
        lock = self._project.cache / "locks" / "manifest.lock"
        with locked(lock, "The manifest", self._context.command, wait=30):
            yield
