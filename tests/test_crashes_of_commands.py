"""Every write of every command: flushed before it gets its name; and a crash around any of them changes nothing."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import TinyProject
from faults import (
    CRASHED,
    Moment,
    When,
    copied,
    crashed,
    facts,
    in_child,
    leftovers,
    moments_of,
    results,
    typed,
    watched,
)

from pogdiff_cli.cli.app import _status
from pogdiff_cli.project.manifest import Manifest, write_manifest

STAGES = ("caption", "index", "fit-density", "train", "sample", "evaluate")
#: Written line by line, each flushed before it counts; or of no consequence.
GROWING = ("artifacts/captions.jsonl", "artifacts/descriptions.jsonl", "artifacts/cache/scan.jsonl")
OF_INIT = ("README.md", ".gitignore", "pogdiff.yaml", "data", "artifacts/cache/locks", "artifacts/cache/scratch")
#: Under these each stage is stale. A log line is a mean since the last one, or since the run was resumed.
OTHER = ("seed=1", "train.learning_rate=3.0e-05", "caption.names=keep", "index.k=3", "train.logging_steps=1")


@pytest.fixture
def project(finished: TinyProject, tmp_path: Path) -> TinyProject:
    """A project that was finished under other settings than it has now."""
    return copied(finished, tmp_path / "project", *OTHER)


def run(project: TinyProject, *words: str) -> None:
    assert _status(typed(project, *words)) == 0


def under_final_names(path: str) -> str:
    """``runs/a/final/unet`` for what is still called ``runs/a/.partial-final-/unet``."""
    hidden = ".partial-"
    parts = [part.removeprefix(hidden).rpartition("-")[0] if hidden in part else part for part in path.split("/")]
    return "/".join(parts)


def made_by(project: TinyProject) -> Iterator[Path]:
    """Files and folders of a project, relative, but for those that ``init`` made and that hold nothing."""
    for path in project.root.rglob("*"):
        found = path.relative_to(project.root)
        if not found.as_posix().startswith(OF_INIT) and found.as_posix() not in GROWING:
            yield found


def test_all_that_a_run_writes_is_flushed_before_it_gets_its_name_and_its_folder_before_the_manifest_speaks_of_it(
    project: TinyProject,
) -> None:
    strip(project)
    flushed: set[str] = set()
    unflushed_folders: set[str] = set()
    named: set[str] = set()
    for moment in moments_of(project, "run", "--gpus", "none"):
        folder = os.path.dirname(moment.path) or "."
        if moment.call == "fsync" and moment.when == "after":
            flushed.add(moment.path)
            unflushed_folders.discard(moment.path)
        elif moment.call != "fsync" and moment.when == "before":
            if moment.path == "manifest.yaml":
                assert not unflushed_folders, f"recorded before it was known to the disk: {unflushed_folders}"
            named.add(moment.path)
        elif moment.call != "fsync":
            unflushed_folders.add(folder)
    assert unflushed_folders == set()
    under = {under_final_names(path) for path in flushed}
    for path in made_by(project):
        shard = (path.parent / "shard").as_posix()  # a file of a cache gets its name from its bytes
        assert path.as_posix() in under or shard in under, f"never flushed: {path}"
        if (project.root / path).is_file():
            assert any(each in named for each in (path.as_posix(), *map(str, path.parents))), f"not by a rename: {path}"


def besieged(project: TinyProject, *words: str, seed: int, most: int) -> int:
    """Type a command until it ends well; every attempt but the last crashes at one of its first renames."""
    draw = random.Random(seed)
    for attempt in range(200):
        left = draw.randint(2, most)

        def happened(now: Moment, left: list[int] = [left], when: str = draw.choice(["before", "after"])) -> None:  # noqa: B006
            if now.call != "fsync" and now.when == when:
                left[0] -= 1
                if left[0] == 0:
                    os._exit(CRASHED)

        def work() -> int:
            watched(project.root, happened)
            return _status(typed(project, *words))

        status = in_child(work)
        if status == 0:
            return attempt
        assert status == CRASHED
    pytest.fail("the run never came to its end")


def as_if_nothing_had_happened(project: TinyProject, whole: TinyProject) -> None:
    assert results(project) == results(whole)
    assert facts(project) == facts(whole)
    assert leftovers(project) == []


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_images_of_a_command_that_crashes_again_and_again_are_those_of_one_that_does_not(
    finished: TinyProject, tmp_path: Path, seed: int
) -> None:
    words = ("sample", "--gpus", "none", "--set", "sample.eta=0.5")
    whole, stale = (copied(finished, tmp_path / name / "project") for name in ("whole", "stale"))
    run(whole, *words)
    before = results(stale)
    assert besieged(stale, *words, seed=seed, most=6) >= 2
    as_if_nothing_had_happened(stale, whole)
    images = [name for name in before if name.endswith(".png")]
    assert [name for name in images if results(stale)[name] == before[name]] == []  # none is of the settings before


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_lets_no_name_of_another_kind_survive(finished: TinyProject, tmp_path: Path, when: When) -> None:
    project = copied(finished, tmp_path / "project", "caption.names=keep")
    names = project.root / "artifacts" / "names.yaml"
    words = ("caption", "--gpus", "none")
    generic = names.read_bytes()
    assert in_child(partial(_status, typed(project, *words))) == 0
    assert "Lovelace: Ada Lovelace" in names.read_text()
    again = ("caption", "--gpus", "none", "--set", "caption.names=generic")
    assert crashed(project, Moment(call="replace", path="manifest.yaml", count=1, when=when), *again)
    assert in_child(partial(_status, typed(project, *again))) == 0
    assert names.read_bytes() == generic


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "most"), [(1, 20), *((seed, 9) for seed in range(2, 9))])
def test_a_run_that_crashes_again_and_again_ends_in_the_bits_of_one_that_does_not(
    project: TinyProject, tmp_path: Path, seed: int, most: int
) -> None:
    words = ("run", "--gpus", "none")
    whole = copied(project, tmp_path / "whole" / "project")
    assert in_child(lambda: _status(typed(whole, *words))) == 0
    assert besieged(project, *words, seed=seed, most=most) >= 3
    assert (project.root / "report.html").is_file()
    as_if_nothing_had_happened(project, whole)


def distinct(moments: list[Moment]) -> list[Moment]:
    """Before and after every rename, and before the first flush of each file: others are the same to a kill."""
    found: dict[tuple[str, str, int, str], Moment] = {}
    for moment in moments:
        top = moment.path.split("/.partial-")[0] if "/.partial-" in moment.path else moment.path
        key = (moment.call, top, moment.count, moment.when) if moment.call != "fsync" else ("fsync", top, 0, "before")
        found.setdefault(key, moment)
    return list(found.values())


def strip(project: TinyProject) -> None:
    """As ``init`` left it."""
    for name in ("artifacts", "runs"):
        shutil.rmtree(project.root / name)
    (project.root / "report.html").unlink()
    write_manifest(project.root / "manifest.yaml", Manifest())


@pytest.mark.slow
@pytest.mark.parametrize("start", ["from nothing", "from a finished project with other settings"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_crash_at_any_moment_of_a_stage_changes_nothing(
    finished: TinyProject, tmp_path: Path, stage: str, start: str
) -> None:
    words = (stage, "--gpus", "none")
    before = copied(finished, tmp_path / "before", *OTHER)
    if start == "from nothing":
        strip(before)
    for earlier in STAGES[: STAGES.index(stage)]:
        assert in_child(partial(_status, typed(before, earlier, "--gpus", "none"))) == 0
    # one place for all, so that paths in what is compared are the same
    place = tmp_path / "project"
    project = copied(before, place)
    moments = distinct(moments_of(project, *words))
    expected, said = results(project), facts(project)
    assert len(moments) > 6
    for moment in moments:
        shutil.rmtree(place)
        project = copied(before, place)
        assert crashed(project, moment, *words), f"it never came to {moment}"
        assert in_child(partial(_status, typed(project, *words))) == 0, f"after {moment}"
        assert results(project) == expected, f"after {moment}"
        assert facts(project) == said, f"after {moment}"
        assert leftovers(project) == [], f"after {moment}"
