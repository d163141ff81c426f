"""Images that vanish or change between stages or in the midst of one, and clocks that jump: never another result."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, Outcome, TinyProject
from faults import copied, facts, results

from pogdiff_cli.data.images import decode_known
from pogdiff_cli.engine import encode
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.digests import digest_bytes
from pogdiff_cli.stages import context as stage_context
from pogdiff_cli.stages import embeddings

ONE = Path("data/images/Ada Lovelace/3.png")
FUTURE, PAST = 4e9, -1e9  # 2096 and 1938


@pytest.fixture
def project(finished: TinyProject, pictures: Path, tmp_path: Path, pogdiff: Command) -> TinyProject:
    """A finished project with images of its own."""
    project = copied(
        finished, tmp_path / "project", "data.images=data/images", "data.max_unreadable=0.2", command=pogdiff
    )
    shutil.rmtree(project.root / "data" / "images")
    shutil.copytree(pictures, project.root / "data" / "images")
    return project


def stale(project: TinyProject) -> dict[str, str]:
    """Each stage that is not up to date, and why."""
    said = project("status", "--json")
    assert said.status == 0, said.err
    stages = json.loads(said.out)["stages"]
    return {stage["key"]: "; ".join(stage["reasons"]) for stage in stages if not stage["fresh"]}


def remove(image: Path) -> None:
    image.unlink()


def change(image: Path) -> None:
    """Another picture of the same size in bytes, with the old one's times, in the same file."""
    before, content = image.stat(), bytearray(image.read_bytes())
    content[-20] ^= 1  # in a checksum: still of the same length
    image.write_bytes(bytes(content))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def cut(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:200])


@pytest.mark.parametrize("disturb", [remove, change, cut], ids=lambda what: what.__name__)
def test_an_image_that_vanishes_or_changes_between_two_stages_makes_stale_what_was_made_of_it(
    project: TinyProject, disturb: Callable[[Path], None]
) -> None:
    assert stale(project) == {}
    disturb(project.root / ONE)
    left = {"caption", "index", "runs/pogdiff/train", "runs/pogdiff/evaluate"}
    assert set(stale(project)) >= left
    assert all("data changed" in stale(project)[key] for key in left)
    refused = project("train", "--no-prerequisites", "--gpus", "none")
    assert refused.status == Exit.MISSING
    assert "not up to date: data changed" in refused.err


@pytest.mark.slow
def test_an_image_that_vanished_after_index_is_not_trained_on(project: TinyProject, tmp_path: Path) -> None:
    remove(project.root / ONE)
    never = copied(project, tmp_path / "never" / "project")
    for name in ("artifacts", "runs", "manifest.yaml"):
        path = never.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for one in (project, never):
        assert one("train", "--name", "pogdiff", "--gpus", "none").status == 0

    def made(one: TinyProject) -> dict[str, str]:
        return {name: digest for name, digest in results(one).items() if name.startswith(("artifacts/", "runs/"))}

    other = ("artifacts/cache/", "runs/pogdiff/samples", "runs/pogdiff/evaluation", "runs/pogdiff/checkpoints")
    assert {k: v for k, v in made(project).items() if not k.startswith(other)} == {
        k: v for k, v in made(never).items() if not k.startswith(other)
    }
    assert facts(project)["pogdiff/train"] == facts(never)["pogdiff/train"]


@pytest.mark.parametrize(
    ("words", "module"),
    [
        pytest.param(("index",), embeddings, id="index"),
        pytest.param(("train", "--name", "pogdiff"), encode, id="train", marks=pytest.mark.slow),
        pytest.param(("evaluate",), embeddings, id="evaluate", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("disturb", "said"),
    [(remove, "has vanished since"), (change, "has changed since"), (cut, "has changed since")],
    ids=["remove", "change", "cut"],
)
def test_an_image_that_changes_in_the_midst_of_a_stage_ends_it_and_never_enters_a_cache(
    project: TinyProject,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    module: Any,
    disturb: Callable[[Path], None],
    said: str,
) -> None:
    for space in ("embeddings", "latents"):
        shutil.rmtree(project.root / "artifacts" / "cache" / space)
    known = decode_known
    image = project.root / ONE
    sha256 = digest_bytes(image).removeprefix("sha256:")

    def after_it_was_read(path: Path, digest: str) -> Any:
        if path == image and not (project.root / "disturbed").exists():
            (project.root / "disturbed").touch()
            disturb(image)
        return known(path, digest)

    monkeypatch.setattr(module, "decode_known", after_it_was_read)
    ended = project(*words, "--force", "--gpus", "none")
    assert ended.status == Exit.DATA, ended
    assert f"{image} {said} it was last read" in ended.err
    assert "Type the same command again" in ended.err
    for space in (project.root / "artifacts" / "cache").glob("*/*/"):
        assert TensorCache(space).missing([sha256]) == [sha256]
    again = project(*words, "--gpus", "none")
    assert again.status == 0, again.err


def test_a_known_picture_is_read_as_long_as_its_bytes_are_the_same(pictures: Path, tmp_path: Path) -> None:
    path = shutil.copyfile(pictures / "Ada Lovelace" / "0.png", tmp_path / "a.png")
    digest = digest_bytes(path).removeprefix("sha256:")
    assert decode_known(path, digest).size == (40, 36)
    change(path)
    with pytest.raises(PogdiffError, match="has changed since"):
        decode_known(path, digest)


def test_a_generated_image_that_vanished_is_made_again_in_the_same_bits(project: TinyProject) -> None:
    before = results(project)
    image = sorted((project.root / "runs/pogdiff/samples").glob("*/*.png"))[1]
    image.unlink()
    assert project("evaluate", "--gpus", "none").status == 0
    assert results(project) == before


@pytest.mark.parametrize("when", [FUTURE, PAST])
def test_times_of_files_prove_nothing(project: TinyProject, when: float) -> None:
    for path in project.root.rglob("*"):
        if path.is_file():
            os.utime(path, (when, when))
    assert stale(project) == {}
    change(project.root / ONE)
    assert "index" in stale(project)


def test_a_manifest_of_a_newer_version_is_refused_and_left_as_it_is(project: TinyProject) -> None:
    path = project.root / "manifest.yaml"
    path.write_text(path.read_text().replace("schema_version: ", "schema_version: 9", 1))
    newer, before = path.read_bytes(), results(project)
    stages = [(stage, "--gpus", "none") for stage in ("caption", "index", "fit-density", "train", "sample", "evaluate")]
    others = ("status", "report", "rate", "run", ("export", str(project.root / "exported")))
    for words in (*stages, *((one,) if isinstance(one, str) else one for one in others)):
        said = project(*words)
        assert said.status == Exit.FAILURE, words
        assert "Install the newer pogdiff that wrote it" in said.err, words
    assert path.read_bytes() == newer
    assert results(project) == before


class Clock(datetime.datetime):
    """A clock that is set back by a century between two runs."""

    year_now = 2099

    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:  # type: ignore[override]
        return datetime.datetime(cls.year_now, 1, 1, tzinfo=tz)


def test_the_last_run_is_the_one_that_was_started_last_whatever_the_clock_says(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str) -> Outcome:
        return project("train", "--name", name, "--gpus", "none", "--set", "train.max_train_steps=1")

    monkeypatch.setattr(stage_context.datetime, "datetime", Clock)
    assert train("of the future".replace(" ", "-")).status == 0
    monkeypatch.setattr(Clock, "year_now", 1999)
    assert train("of-the-past").status == 0
    said = project("sample", "--dry-run", "--json", "--gpus", "none")
    assert json.loads(said.out)["stages"][-1]["key"] == "runs/of-the-past/sample"


def test_a_half_written_cache_file_of_another_process_is_left_alone_whatever_its_clock_says(tmp_path: Path) -> None:
    for name, age in (("young", 0.0), ("of the future", -1e9), ("old", 7200.0)):
        path = tmp_path / f".partial-{name}.safetensors"
        path.write_bytes(b"half")
        now = path.stat().st_mtime
        os.utime(path, (now - age, now - age))
    TensorCache(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".partial-of the future.safetensors",
        ".partial-young.safetensors",
    ]
