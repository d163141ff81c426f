"""An ``init`` that is killed at any moment is completed by typing it again, in a new folder and in an empty one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Command
from test_crash_points import CRASHED, in_child, watched

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.layout import find_root
from pogdiff_cli.stages import init


def make(root: Path) -> None:
    init.run(root, template="sd15", images=None)


def crash_at(root: Path, moment: int) -> int:
    """``init`` in a child that ends at once at the ``moment``-th change of the disk; 0 where there are fewer."""

    def work() -> None:
        seen = iter(range(10_000))

        def happened(name: str, path: str, when: str) -> None:
            del name, path, when
            if next(seen) == moment:
                os._exit(CRASHED)

        watched(happened)
        make(root)

    return in_child(work)


def tree(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("there", ["new", "empty"])
def test_after_a_crash_at_any_moment_the_same_command_ends_in_the_same_project(
    tmp_path: Path, there: str, step: int
) -> None:
    make(tmp_path / "whole" / "p")
    whole = tree(tmp_path / "whole" / "p")
    projects = 0
    for moment in range(0, 10_000, step):
        root = tmp_path / str(moment) / "p"
        root.mkdir(parents=True) if there == "empty" else root.parent.mkdir()
        inode = root.stat().st_ino if there == "empty" else None
        if crash_at(root, moment) == 0:
            break
        if (root / "pogdiff.yaml").exists():  # then all else is there
            projects += 1
            assert whole.items() <= tree(root).items()
            with pytest.raises(PogdiffError, match="is a pogdiff project already"):
                make(root)
        else:
            with pytest.raises(PogdiffError, match="is no pogdiff project"):
                find_root(root if root.is_dir() else root.parent)
            make(root)
            assert tree(root) == whole
        if inode is not None:  # somebody may stand in it
            assert root.stat().st_ino == inode
    assert moment > 20
    assert projects * step > 2


def half_moved(root: Path) -> Path:
    """A folder whose ``init`` was killed among its moves."""
    for moment in range(0, 10_000, 3):
        target = root / str(moment)
        assert crash_at(target, moment) == CRASHED
        if (target / "README.md").exists():
            return target
    raise AssertionError


def test_what_somebody_puts_into_a_half_made_folder_is_left_alone(tmp_path: Path, pogdiff: Command) -> None:
    root = half_moved(tmp_path)
    (root / "notes.txt").write_text("mine")
    refused = pogdiff("init", root, "--template", "sd15")
    assert refused.status == Exit.USAGE
    assert "type that command again" in refused.err
    (root / "notes.txt").rename(tmp_path / "notes.txt")
    (root / "README.md").write_text("mine")
    assert pogdiff("init", root, "--template", "sd15").status == 0
    assert (root / "README.md").read_text() == "mine"


def test_another_command_does_not_complete_what_this_one_began(tmp_path: Path, pogdiff: Command) -> None:
    root = half_moved(tmp_path)
    before = tree(root)
    refused = pogdiff("init", root, "--template", "sdxl")
    assert refused.status == Exit.USAGE
    assert tree(root) == before
    assert pogdiff("init", root, "--template", "sd15").status == 0


def test_a_failure_leaves_an_empty_folder_empty_and_a_new_one_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise PogdiffError("The disk is full.")

    monkeypatch.setattr(init, "write_text", full)
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "deep" / "new"):
        with pytest.raises(PogdiffError, match="full"):
            make(root)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert list((tmp_path / "empty").iterdir()) == []


def test_two_at_a_time_are_one_and_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, met = init.write_text, []

    def meanwhile(path: Path, text: str) -> None:
        if path.name == ".gitignore":
            monkeypatch.undo()
            with pytest.raises(PogdiffError, match="Another 'pogdiff init'") as caught:
                make(tmp_path / "p")
            met.append(caught.value.exit_code)
        write(path, text)

    monkeypatch.setattr(init, "write_text", meanwhile)
    make(tmp_path / "p")
    assert met == [Exit.LOCKED]
    assert (tmp_path / "p" / "pogdiff.yaml").is_file()
