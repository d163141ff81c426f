"""What no record covers: checkpoints, caches, small files of runs, logs, and what killed processes left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from pogdiff_cli.engine.checkpoint import checkpoints
from pogdiff_cli.engine.shards import DamagedShard, bad_entries, open_shard
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.metrics.judge_log import read_log
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.aside import ASIDE, inside
from pogdiff_cli.project.atomic import HIDDEN
from pogdiff_cli.project.digests import Digests
from pogdiff_cli.project.layout import Project
from pogdiff_cli.stages.finding import Finding, named

CACHES = ("latents", "text", "embeddings")
_YOUNG = 60.0  # seconds: at the top of a project commands write that hold no lock


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a project beside its recorded outputs."""

    project: Project
    reader: Digests
    depth: Literal["quick", "every byte"]
    track: Track = untracked

    def runs(self) -> list[Path]:
        """Folders of runs, without links."""
        folder = self.project.root / "runs"
        found = sorted(folder.iterdir()) if folder.is_dir() and inside(self.project.root, folder) else []
        return [run for run in found if run.is_dir() and inside(self.project.root, run)]

    def checkpoints(self) -> Iterator[Finding]:
        """Checkpoints that are not as they were written."""
        found = [path for run in self.runs() for path in checkpoints(run / "checkpoints")]
        for path in self.track(found, "Reading checkpoints", len(found)):
            reason = self._not_whole(path)
            if reason is not None:
                yield Finding(
                    path=self._relative(path),
                    state="damaged",
                    detail=reason,
                    remedy="set aside",
                    advice="training goes on from the newest whole one",
                )

    def caches(self) -> Iterator[Finding]:
        """Files of the tensor caches that are not what their names or their checksums say."""
        found = [
            path
            for kind in CACHES
            for path in sorted((self.project.cache / kind).glob("*/*.safetensors"))
            if not path.name.startswith(HIDDEN) and inside(self.project.root, path)
        ]
        for path in self.track(found, "Reading caches", len(found)):
            reason = self._shard_damage(path)
            if reason is not None:
                advice = "what it held is made again when it is needed"
                yield Finding(
                    path=self._relative(path), state="damaged", detail=reason, remedy="set aside", advice=advice
                )

    def small_files(self) -> Iterator[Finding]:
        """Files that are made again, or logs that are not, and cannot be read."""
        for path, reads in self._derived():
            if path.is_file() and not reads(path):
                yield Finding(
                    path=self._relative(path),
                    state="damaged",
                    detail="cannot be read to its end",
                    remedy="set aside",
                    advice="the command that wrote it writes it again",
                )
        for run in self.runs():
            log = run / "evaluation" / "judge.jsonl"
            try:
                read_log(log)
            except (PogdiffError, UnicodeDecodeError) as problem:
                yield self._log(log, str(problem).partition(". ")[0])
        kept = self.project.artifacts / "descriptions.jsonl"
        bad = [str(number) for number in _bad_lines(kept)]
        if bad:
            yield self._log(kept, f"not a captioner's answer: line {named(bad)}")

    def leftovers(self) -> Iterator[Finding]:
        """What processes that are gone have left; only while nobody is at work."""
        for path in self._temporary():
            checkpoint = path.parent.name == "checkpoints"
            detail = "a half-written checkpoint" if checkpoint else "half-written by a process that is gone"
            yield Finding(path=self._relative(path), state="leftover", detail=detail, remedy="set aside")
        for path in sorted((self.project.cache / "scratch").glob("*")):
            yield Finding(
                path=self._relative(path), state="leftover", detail="of a stage that was killed", remedy="set aside"
            )
        for path in sorted((self.project.cache / "locks").glob("*.holder.json")):
            if path.name != "project.holder.json":
                detail = f"says that {_holder(path)} holds a lock; nobody does"
                yield Finding(path=self._relative(path), state="leftover", detail=detail, remedy="set aside")
        for path in sorted(self.project.artifacts.glob("*.part-*.jsonl")):
            advice = "'pogdiff caption' takes them in"
            yield Finding(
                path=self._relative(path), state="interrupted", detail="captions", remedy="next run", advice=advice
            )
        damaged = [path for kind in CACHES for path in (self.project.cache / kind).glob("*/*.damaged")]
        if damaged:
            detail = f"{len(damaged)} damaged files of caches were set aside (*.damaged)"
            advice = "'pogdiff gc' removes them"
            yield Finding(path=self._relative(self.project.cache), state="leftover", detail=detail, advice=advice)

    def _derived(self) -> Iterator[tuple[Path, Callable[[Path], bool]]]:
        root = self.project.root
        yield from ((root / name, _ends_well) for name in ("report.html", "rating.html"))
        yield root / "inspect.json", _json_reads
        yield self.project.cache / "digests.json", _json_reads
        for run in self.runs():
            yield run / "exposure.json", _json_reads
            yield run / "config.resolved.yaml", _yaml_reads
            yield from ((path, _json_reads) for path in sorted((run / "evaluation").glob("comparison-*.json")))

    def _log(self, path: Path, detail: str) -> Finding:
        return Finding(
            path=self._relative(path),
            state="damaged",
            detail=detail,
            advice="it was paid for and is left alone: restore it, or remove the line and it is asked again",
        )

    def _temporary(self) -> Iterator[Path]:
        root = self.project.root
        for path in sorted(root.glob(f"{HIDDEN}*")):
            if time.time() - path.lstat().st_mtime > _YOUNG:
                yield path
        for top in (self.project.artifacts, *self.runs()):
            for folder, folders, files in os.walk(top):  # follows no links
                here = [name for name in (*folders, *files) if name.startswith(HIDDEN) or name == "scan.jsonl.new"]
                yield from (Path(folder) / name for name in sorted(here))
                folders[:] = [name for name in folders if name not in here and name != ASIDE]

    def _not_whole(self, path: Path) -> str | None:
        try:
            digests = json.loads((path / "digests.json").read_text(encoding="utf-8"))
            bad = [name for name, digest in digests.items() if not self._holds(path / name, digest)]
        except (OSError, ValueError, AttributeError, KeyError, TypeError, IndexError):
            return "its digests.json, or a file that it names, cannot be read"
        return f"not as written: {named(bad)}" if bad else None if digests else "its digests.json is empty"

    def _holds(self, path: Path, digest: str) -> bool:
        if self.depth == "quick" and path.suffix == ".safetensors":
            return _fits(path)  # checkpoints are many gigabytes, and new ones come all the time
        return self.reader.of(path) == digest

    def _shard_damage(self, path: Path) -> str | None:
        try:
            open_shard(path, check="index" if self.depth == "quick" else "every byte")
        except FileNotFoundError:
            return None
        except DamagedShard as problem:
            return f"{problem}{_entries_lost(path)}"
        return None

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.project.root).as_posix()


def _entries_lost(path: Path) -> str:
    try:
        shard = open_shard(path, check="index").shard
        return f"; {bad_entries(shard)} of {shard.count * len(shard.layout)} tensors are damaged"
    except (DamagedShard, OSError):
        return ""


def _fits(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with path.open("rb") as file:
        size, length = path.stat().st_size, int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) if 0 < length <= size - 8 else None
    if not isinstance(header, dict):
        return False
    ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def _holder(path: Path) -> str:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on {facts['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process"


def _bad_lines(path: Path) -> Iterator[int]:
    """Numbers of the lines that hold no JSON object; the last one may be torn."""
    if not path.is_file():
        return
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            whole = not line.strip() or isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            yield number


def _json_reads(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _yaml_reads(path: Path) -> bool:
    try:
        return isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False


def _ends_well(path: Path) -> bool:
    """Whether a page has its end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return file.read().rstrip().endswith(b"</html>")
