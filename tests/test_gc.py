"""``pogdiff gc``: shows what nothing refers to and removes that alone; the project is the same to everybody else."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import finished
import pytest
from finished import pogdiff
from test_crash_points import CRASHED, in_child, watched

from pogdiff_cli.engine.checkpoint import latest_whole
from pogdiff_cli.errors import Exit
from pogdiff_cli.project.locks import project_lock

LONG_AGO = time.time() - 7200
#: What nothing refers to, by what is said of it.
GARBAGE = {
    "artifacts/cache/latents/0123456789abcdef": "no run has any more",
    "artifacts/cache/text/0123456789abcdef": "no run has any more",
    "artifacts/cache/embeddings/0123456789abcdef": "no run has any more",
    "artifacts/cache/scratch/index": "killed",
    "artifacts/.partial-x": "half-written",
    "runs/pogdiff/.partial-y.json": "half-written",
    ".partial-z.html": "half-written",
    "set-aside/2026-01-01T00-00-00Z": "set aside",
}


@pytest.fixture
def root(finished_project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_project, tmp_path / "p", symlinks=True))


@pytest.fixture
def littered(root: Path) -> Path:
    for name in GARBAGE:
        path = root / name
        if path.suffix in (".json", ".html"):
            path.write_text("x" * 100)
        else:
            path.mkdir(parents=True)
            (path / "part.bin").write_bytes(b"x" * 5000)
            os.utime(path / "part.bin", (LONG_AGO, LONG_AGO))
        os.utime(path, (LONG_AGO, LONG_AGO))
    shard = next((root / "artifacts/cache/latents").glob("*/*.safetensors"))
    shutil.copy(shard, shard.with_suffix(".damaged"))
    return root


def gc(root: Path, *options: str) -> dict[str, Any]:
    outcome = pogdiff("gc", "-C", root, "--json", *options)
    assert outcome.status == 0, outcome.err
    return dict(json.loads(outcome.out))


def paths(found: dict[str, Any]) -> set[str]:
    return {item["path"] for item in found["items"]}


def tree(root: Path) -> set[str]:
    there = (path.relative_to(root).as_posix() for path in root.rglob("*"))
    return {name for name in there if not name.startswith("artifacts/cache/locks")}


def status(root: Path) -> str:
    return pogdiff("status", "-C", root, "--json").out


def test_it_goes_and_the_project_is_the_same_to_everybody_else(root: Path, littered: Path) -> None:
    before = status(root)
    looked = gc(root, "--dry-run")
    reasons = {item["path"]: item["reason"] for item in looked["items"]}
    damaged = next(path for path in reasons if path.endswith(".damaged"))
    assert set(reasons) == {*GARBAGE, damaged}
    assert [name for name, words in GARBAGE.items() if words not in reasons[name]] == []
    assert looked["bytes"] > 5 * 5000
    everything = tree(root)
    assert all(name in everything for name in reasons)

    removed = gc(root, "--yes")
    assert (removed["removed"], paths(removed)) == (True, set(reasons))
    gone = everything - tree(root)
    assert {name for name in gone if not any(name.startswith(top) for top in (*reasons, "set-aside"))} == set()
    assert status(root) == before
    stages = json.loads(pogdiff("run", "-C", root, "--json").out)["stages"]
    assert {stage["state"] for stage in stages if stage["key"] != "report"} == {"up to date"}
    assert gc(root, "--yes")["items"] == []
    assert pogdiff("doctor", "--repair", "-C", root).status == 0


def test_in_a_fresh_result_there_is_nothing_to_remove(root: Path) -> None:
    before = tree(root)
    assert gc(root, "--yes")["items"] == []
    assert tree(root) == before


def test_caches_of_settings_that_changed_go_and_those_of_any_run_stay(root: Path) -> None:
    cache = root / "artifacts/cache/latents"
    old = {f"artifacts/cache/latents/{folder.name}" for folder in cache.iterdir()}
    finished.configure(root, "runs.small.data.resolution=32", "data.resolution=64")
    assert gc(root, "--dry-run")["items"] == []  # the run that is declared reads it
    finished.configure(root, "runs.small.data.resolution=64")
    before = status(root)
    assert paths(gc(root, "--yes")) == old
    assert status(root) == before


def test_what_nobody_can_judge_stays(littered: Path) -> None:
    found = gc(littered, "--dry-run", "--set", "pretrained_model_name_or_path=./nowhere")
    assert "artifacts/cache/latents/0123456789abcdef" not in paths(found)
    assert "artifacts/cache/embeddings/0123456789abcdef" in paths(found)
    assert any("latents" in reason and "nowhere" in reason for reason in found["kept"])
    found = gc(littered, "--dry-run", "--set", "index.extractor=hf:./nowhere#cls")
    assert "artifacts/cache/embeddings/0123456789abcdef" not in paths(found)
    assert "artifacts/cache/text/0123456789abcdef" in paths(found)


def test_checkpoints_beyond_the_limit_go_once_those_that_stay_are_whole(root: Path) -> None:
    one = ("--set", "train.checkpoints_total_limit=1")
    folder = root / "runs/pogdiff/checkpoints"
    named = ("--set", "train.resume_from_checkpoint=checkpoint-000002")
    assert gc(root, "--dry-run", *one, *named)["items"] == []
    newest = folder / "checkpoint-000004/weights.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(content[:-1])
    assert gc(root, "--dry-run", *one)["items"] == []
    newest.write_bytes(content)
    assert paths(gc(root, "--yes", *one)) == {"runs/pogdiff/checkpoints/checkpoint-000002"}
    assert latest_whole(folder) == folder / "checkpoint-000004"


def test_links_are_neither_followed_nor_removed(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "feed").mkdir(parents=True)
    (elsewhere / "feed" / "mine.safetensors").write_text("mine")
    (elsewhere / ".partial-mine").write_text("mine")
    os.utime(elsewhere / ".partial-mine", (LONG_AGO, LONG_AGO))
    (root / "artifacts/cache/latents/feed").symlink_to(elsewhere / "feed")
    shutil.move(root / "artifacts/cache/text", elsewhere / "text")
    (root / "artifacts/cache/text").symlink_to(elsewhere / "text")
    (elsewhere / "text" / "feed").mkdir()
    (root / "runs/other").symlink_to(elsewhere)
    (root / ".partial-link").symlink_to(elsewhere)
    (root / "set-aside").symlink_to(elsewhere)
    (root / "artifacts/.partial-full").mkdir()
    (root / "artifacts/.partial-full/inner").symlink_to(elsewhere)
    os.utime(root / "artifacts/.partial-full/inner", (LONG_AGO, LONG_AGO), follow_symlinks=False)
    os.utime(root / "artifacts/.partial-full", (LONG_AGO, LONG_AGO))
    before = tree(elsewhere)
    assert paths(gc(root, "--yes")) == {"artifacts/.partial-full"}
    assert tree(elsewhere) == before
    assert (root / "set-aside").is_symlink()


def test_what_may_be_somebodys_work_at_this_moment_stays(root: Path) -> None:
    (root / ".partial-now.html").write_text("a page that is being written")
    assert gc(root, "--yes")["items"] == []
    old = root / "artifacts/.partial-old"
    old.mkdir()
    os.utime(old, (LONG_AGO, LONG_AGO))
    with project_lock(root / "artifacts/cache/locks", "pogdiff train", mode="shared"):
        looked = gc(root, "--dry-run")
        assert looked["items"] == []
        assert any("another command is at work" in reason for reason in looked["kept"])
    space = root / "artifacts/cache/text/0123456789abcdef"
    space.mkdir()
    with project_lock(root / "artifacts/cache/locks", "pogdiff train", mode="shared"):
        refused = pogdiff("gc", "--yes", "-C", root)
    assert refused.status == Exit.LOCKED
    assert space.is_dir()


def test_what_cannot_be_said_again_stays_set_aside(root: Path) -> None:
    aside = root / "set-aside" / "2026-01-01T00-00-00Z"
    precious = ["artifacts/captions.jsonl", "artifacts/names.yaml", "runs/a/evaluation/judge.jsonl", "manifest.yaml"]
    for name in (*precious, "artifacts/index/index.json", "runs/a/final/x.bin", "REASONS.txt"):
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).write_text("x")
    found = gc(root, "--yes")
    assert set(found["items"][0]["paths"]) == {
        f"set-aside/{aside.name}/{name}" for name in ("artifacts/index", "runs/a/final")
    }
    assert {path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()} == {
        *precious,
        "REASONS.txt",
    }
    assert gc(root, "--yes")["items"] == []


def test_what_was_being_replaced_stays_while_nothing_has_taken_its_place(root: Path) -> None:
    halfway = root / "runs/pogdiff/.partial-halfway"
    halfway.mkdir()
    os.replace(root / "runs/pogdiff/final", halfway / "old")
    for path in (halfway, *halfway.rglob("*")):
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert gc(root, "--yes")["items"] == []
    shutil.copytree(halfway / "old", root / "runs/pogdiff/final")
    assert paths(gc(root, "--yes")) == {"runs/pogdiff/.partial-halfway"}


@pytest.mark.parametrize("harm", ["truncated", "gone"])
def test_without_a_manifest_nobody_can_say_what_is_referred_to(littered: Path, harm: str) -> None:
    manifest = littered / "manifest.yaml"
    manifest.unlink() if harm == "gone" else os.truncate(manifest, 400)
    before = tree(littered)
    refused = pogdiff("gc", "--yes", "-C", littered)
    assert refused.status == Exit.MISSING
    assert "doctor --repair" in refused.err
    assert tree(littered) == before


def test_it_asks_and_takes_no_for_an_answer(
    littered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(littered)
    refused = pogdiff("gc", "-C", littered)  # nobody is there to be asked
    assert (refused.status, "--yes" in refused.err) == (Exit.USAGE, True)
    assert "set aside by a repair" in refused.out
    for answer in ("n\n", "y\n"):
        assert tree(littered) == before
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        said = pogdiff("gc", "-C", littered)
        assert said.status == 0
        assert "for good? [y/N]" in said.err + said.out
    assert "Removed" in said.out
    assert not (littered / "set-aside").exists()


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_is_completed_by_the_next_and_breaks_nothing(
    littered: Path, tmp_path: Path, step: int
) -> None:
    for name in ("artifacts/cache/embeddings/0123456789abcdef", "runs/pogdiff/checkpoints", "runs/pogdiff/final/unet"):
        shutil.rmtree(littered / name)  # large, and not what this is about
    before = status(littered)
    crashes = 0
    for moment in range(0, 10_000, step):
        root = Path(shutil.copytree(littered, tmp_path / "copies" / str(moment) / "p"))
        if crash_at(root, moment) == 0:
            break
        crashes += 1
        gc(root, "--yes")
        assert gc(root, "--yes")["items"] == []
        assert [name for name in GARBAGE if (root / name).exists()] == []
        assert list(root.glob(".partial-*")) == []
        shutil.rmtree(root)
    assert crashes * step > 60
    assert status(root) == before


def crash_at(root: Path, moment: int) -> int:
    def work() -> None:
        seen = iter(range(10_000))

        def happened(name: str, path: str, when: str) -> None:
            del name, path, when
            if next(seen) == moment:
                os._exit(CRASHED)

        watched(happened)
        assert pogdiff("gc", "--yes", "-C", root).status == 0

    return in_child(work)
