"""Outputs of stages against the manifest, file by file against their receipts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from pogdiff_cli.data.captions import read_captions
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.project.aside import inside
from pogdiff_cli.project.digests import Digests
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.manifest import Manifest, StageRecord
from pogdiff_cli.project.receipts import read_receipt, receipt_path
from pogdiff_cli.stages.finding import Finding, named
from pogdiff_cli.stages.names_recovery import look_at_names

_NEXT = "'pogdiff run' makes it again"
#: What raters and judges said, and the key that unblinds them: nothing else can say it again.
_IRREPLACEABLE = ("human.json", "human.csv", "rating_key.json")


def all_records(manifest: Manifest) -> Iterator[tuple[str, StageRecord]]:
    """Every stage's key and record."""
    yield from manifest.stages.items()
    for run, stages in manifest.runs.items():
        yield from ((f"runs/{run}/{stage}", record) for stage, record in stages.items())


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The recorded outputs of a project, and how their digests are found out."""

    project: Project
    manifest: Manifest
    reader: Digests
    at_work: Literal["nobody", "somebody"]

    def paths(self) -> list[Path]:
        """Every file that is compared: to be read with a display of progress."""
        found: list[Path] = []
        for _, record in all_records(self.manifest):
            for path in (*record.outputs, *record.logs) if record.state == "done" else ():
                target = self.project.root / path
                if inside(self.project.root, target):
                    found += [file for file in target.rglob("*") if file.is_file()] if target.is_dir() else [target]
        return [path for path in found if path.is_file()]

    def findings(self) -> Iterator[Finding]:
        """What is not as it is recorded."""
        for key, record in all_records(self.manifest):
            if record.state == "running" and self.at_work == "nobody":
                yield Finding(
                    path=key,
                    state="interrupted",
                    detail=f"{record.holder or 'the process that ran it'} is gone",
                    remedy="mark",
                    advice="'pogdiff run' goes on where it stopped",
                )
            if record.state == "done":
                yield from self._stage(key, record)
        caption = self.manifest.record("caption")
        if caption is None or caption.state != "done":
            yield from look_at_names(self.project, None)
        if caption is None:
            yield from self._unrecorded_captions()

    def _stage(self, key: str, record: StageRecord) -> Iterator[Finding]:
        try:
            path = receipt_path(self.project, key)
        except ValueError as problem:
            yield Finding(path="manifest.yaml", state="changed", detail=str(problem), advice="left alone")
            return
        receipt = read_receipt(path)
        known = receipt.files if receipt is not None and receipt.record.outputs == record.outputs else {}
        wrong = [
            found
            for output, digest in record.outputs.items()
            for found in self._output(output, digest, known.get(output))
        ]
        yield from wrong
        yield from self._logs(record)
        if not wrong and (receipt is None or receipt.record != record):
            detail = "is not as written" if path.exists() else "is not there: an earlier version did not write it"
            yield Finding(
                path=self._relative(path), state="changed", detail=detail, remedy="receipt", files=(key,)
            )  # what it would say holds

    def _logs(self, record: StageRecord) -> Iterator[Finding]:
        """What a stage wrote for people to read: nothing is computed from it, and nothing writes it again alone."""
        for path, digest in record.logs.items():
            target = self.project.root / path
            found = self.reader.of(target) if inside(self.project.root, target) else digest
            if found != digest:
                detail = "is gone" if found is None else "is not as written"
                yield Finding(path=path, state="changed", detail=detail, advice="the report leaves it out")

    def _output(self, path: str, expected: str, files: Mapping[str, str] | None) -> Iterator[Finding]:
        target = self.project.root / path
        if not inside(self.project.root, target):
            yield Finding(path=path, state="changed", detail="leads out of the project; it is not looked at")
            return
        found = self.reader.of(target)
        if found == expected:
            return
        if path == self._relative(self.project.names):
            yield from look_at_names(self.project, expected)
        elif found is None:
            yield self._missing(target, path)
        elif path == self._relative(self.project.captions):
            yield self._captions(path)
        elif target.name in _IRREPLACEABLE:
            yield Finding(
                path=path,
                state="damaged",
                detail="is not as it was written",
                advice="it holds what people said and is left alone: restore it, or merge their answers again",
            )
        elif target.is_dir():
            yield self._folder(target, path, files)
        else:
            yield Finding(path=path, state="damaged", detail="is not as written", remedy="set aside", advice=_NEXT)

    def _missing(self, target: Path, path: str) -> Finding:
        if target.name in _IRREPLACEABLE:
            return Finding(path=path, state="missing", detail="is gone", advice="restore it from a backup")
        if path.startswith("runs/") and not (self.project.root / "runs" / path.split("/")[1]).exists():
            return Finding(path=path, state="changed", detail="its run's folder is gone", advice="deleted by hand?")
        return Finding(path=path, state="missing", detail="is gone", remedy="next run", advice=_NEXT)

    def _folder(self, target: Path, path: str, files: Mapping[str, str] | None) -> Finding:
        by_itself = target.name == "samples"  # each image is whole by itself; what is missing is drawn again
        if files is None:
            unread = unreadable_images(target) if by_itself else []
            if by_itself and not unread:
                return Finding(path=path, state="changed", detail="is not as written, but every image can be read")
            parts, altered, gone = ["is not as written"], unread, [""]
        else:
            there = self.reader.files(target)
            altered = [name for name, digest in files.items() if there.get(name, digest) != digest]
            gone = [name for name in files if name not in there]
            strange = [name for name in there if name not in files]
            kinds = (("not as written:", altered), ("gone:", gone), ("not ours:", strange))
            parts = [f"{words} {named(names)}" for words, names in kinds if names]
        if not altered and not gone:
            return Finding(path=path, state="changed", detail="; ".join(parts))
        return Finding(
            path=path,
            state="damaged",
            detail="; ".join(parts),
            remedy="set aside" if altered or not by_itself else "next run",
            advice="'pogdiff run' draws what is missing" if by_itself else _NEXT,
            files=tuple(f"{path}/{name}" for name in altered) if by_itself else (),
        )

    def _captions(self, path: str) -> Finding:
        try:
            read_captions(self.project.captions)
        except (PogdiffError, UnicodeDecodeError) as problem:
            where = str(problem).partition(" ")[0].rpartition(":")[0].rpartition(":")[2]
            return Finding(
                path=path,
                state="damaged",
                detail=f"line {where} is no caption" if where.isdigit() else "holds lines that are no captions",
                remedy="set aside",
                advice=_NEXT,
            )
        return Finding(
            path=path,
            state="changed",
            detail="is not as written, but can be read",
            advice="edited by hand?",
        )

    def _unrecorded_captions(self) -> Iterator[Finding]:
        """Words that were paid for, and nothing says how they were asked for: the next attempt may replace them."""
        answers = self.project.artifacts / "descriptions.jsonl"  # kept by what was asked, and never asked for twice
        if answers.exists() or not self.project.captions.is_file():
            return
        try:
            by = {caption.captioner for caption in read_captions(self.project.captions).values()}
        except (PogdiffError, UnicodeDecodeError):
            by = {"somebody"}
        paid = sorted(by - {"template", "files"})
        if paid:
            yield Finding(
                path=self._relative(self.project.captions),
                state="changed",
                detail=f"captions by {', '.join(paid)}, and the manifest does not say how they were asked for",
                remedy="copy",
                advice="the next 'pogdiff caption' may replace them",
            )

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.project.root).as_posix()


def unreadable_images(folder: Path) -> list[str]:
    """Images of a folder that do not decode to their end."""
    bad = []
    for path in sorted(folder.rglob("*.png")):
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, ValueError, SyntaxError):
            bad.append(path.relative_to(folder).as_posix())
    return bad
