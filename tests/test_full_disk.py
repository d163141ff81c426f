"""A disk that is full or read-only: one message that says which and how much, the old state kept, and then it works."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Command, Outcome, TinyProject
from faults import copied, facts, mounted, results

pytestmark = pytest.mark.mounts


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command that has something to write, and the room it finds: too little for ``what``."""

    words: tuple[str, ...]
    room: int
    lost: str = ""  # results that are to be made again, instead of --force
    what: str
    kept: tuple[str, ...] = ()  # results that have to be there all the same

    @property
    def name(self) -> str:
        return " ".join(self.words)


CASES = [
    Case(words=("caption",), room=0, what="caption.holder.json"),
    Case(words=("index",), room=9_000, what="manifest.yaml", kept=("artifacts/index/neighbours.npy",)),
    Case(words=("fit-density",), room=100_000, what="density", kept=("artifacts/density/vae.safetensors",)),
    Case(words=("train",), room=2_000_000, what="runs/pogdiff/final", kept=("runs/pogdiff/final/model_index.json",)),
    Case(words=("sample",), room=30_000, what="runs/pogdiff/samples/", lost="runs/pogdiff/samples/*/*.png"),
    Case(words=("evaluate",), room=33_000, what="runs/pogdiff/evaluation/", lost="runs/pogdiff/evaluation/*"),
    Case(words=("report",), room=100_000, what="report.html"),
    Case(words=("rate",), room=40_000, what="rating.html"),
    Case(words=("export", "{root}/exported"), room=100_000, what="exported"),
    Case(words=("inspect",), room=0, what="inspect.json"),
]
QUICK = ("caption", "index", "train", "evaluate", "inspect")
NEVER_UP_TO_DATE = ("report", "rate", "inspect", "export")


@pytest.fixture
def disk(finished: TinyProject, tmp_path: Path, pogdiff: Command) -> Iterator[TinyProject]:
    """A finished project on a file system of its own."""
    with mounted(tmp_path / "disk", "64m") as folder:
        yield copied(finished, folder / "project", command=pogdiff)


def fill(disk: TinyProject, room: int) -> Path:
    """Leave ``room`` bytes, in whole pages."""
    filler = disk.root.parent / "filler"
    filler.write_bytes(b"")
    free = shutil.disk_usage(disk.root).free
    with filler.open("wb") as file:
        file.write(b"x" * max(0, free - room))
    return filler


def refused(said: Outcome, *parts: str) -> None:
    assert said.status == 1, said
    assert [part for part in parts if part not in said.err] == [], said.err
    assert "Traceback" not in said.err
    assert "Internal error" not in said.err
    assert said.err.count("Error: ") == 1


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[] if case.words[0] in QUICK else pytest.mark.slow) for case in CASES],
)
def test_a_full_disk_is_said_with_what_it_takes_and_the_command_works_once_there_is_room(
    disk: TinyProject, case: Case
) -> None:
    words = tuple(word.format(root=disk.root) for word in case.words)
    before, recorded = results(disk), facts(disk)
    stage = () if words[0] in NEVER_UP_TO_DATE else ("--gpus", "none")
    for path in disk.root.glob(case.lost) if case.lost else ():
        path.unlink()
    filler = fill(disk, case.room)
    said = disk(*words, *stage, *(() if case.lost or not stage else ("--force",)))
    refused(said, "The disk is full", case.what, f"file system at {disk.root.parent} has", "what was there is kept")
    assert "Free some space and type the same command again" in said.err
    now = results(disk)
    assert {name: now.get(name) for name in case.kept} == {name: before[name] for name in case.kept}
    assert [path for path in disk.root.rglob(".partial-*") if "artifacts/cache" not in path.as_posix()] == []
    filler.unlink()
    again = disk(*words, *stage)
    assert again.status == 0, again.err
    after = results(disk)
    assert {name: after[name] for name in before} == before  # in the bits of a run that met no full disk
    assert facts(disk).items() >= recorded.items()


def test_a_full_disk_keeps_nobody_from_looking(disk: TinyProject) -> None:
    fill(disk, 0)
    for words in (("status",), ("doctor",), ("run", "--dry-run"), ("train", "--name", "other", "--dry-run", "-q")):
        said = disk(*words)
        assert "Internal error" not in said.err
        assert said.status in {"doctor": (0, 4), "train": (0, 1)}.get(words[0], (0,)), said  # a rehearsal writes


def remounted(disk: TinyProject, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk.root.parent], check=True)


def test_a_read_only_project_can_be_looked_at_and_says_why_it_is_not_written(disk: TinyProject) -> None:
    remounted(disk, "ro")
    for words in (("status",), ("doctor",), ("run", "--dry-run")):
        said = disk(*words)
        assert said.status in (0, 4 if words == ("doctor",) else 0), said  # it looks for room for checkpoints
    shown = disk.command("compare", "-C", disk.root)
    assert shown.status == 0, shown.err
    stages = [(stage, "--force", "--gpus", "none") for stage in ("caption", "index", "fit-density", "train", "sample")]
    for words in (*stages, ("report",), ("rate",), ("run",), ("inspect",), ("export", f"{disk.root}/exported")):
        refused(disk(*words), "No permission to write", f"file system at {disk.root.parent} is read-only")
    remounted(disk, "rw")
    assert disk("run", "--gpus", "none").status == 0


def test_a_read_only_cache_is_said_too(finished: TinyProject, tmp_path: Path, pogdiff: Command) -> None:
    project = copied(finished, tmp_path / "project", command=pogdiff)
    cache = project.root / "artifacts" / "cache"
    with mounted(cache, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", cache], check=True)
        refused(project("index", "--force", "--gpus", "none"), "No permission to write", f"{cache} is read-only")
        assert project("status").status == 0
    assert project("index", "--force", "--gpus", "none").status == 0


def test_a_memory_map_finds_out_that_the_disk_is_full_before_it_is_written_to(tmp_path: Path) -> None:
    import numpy as np

    from pogdiff_cli.errors import PogdiffError
    from pogdiff_cli.project.disk import reserve

    with mounted(tmp_path / "disk", "100k") as folder:
        column = folder / "column.npy"
        np.lib.format.open_memmap(column, mode="w+", dtype=np.float32, shape=(100_000,))
        with pytest.raises(
            PogdiffError, match=r"disk is full.*takes 400 kB\. The file system at .*disk has \d+ kB left"
        ):
            reserve(column)
