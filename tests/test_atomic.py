"""A file is the old one or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.project import atomic
from pogdiff_cli.project.atomic import HIDDEN, atomic_file, atomic_folder, full_disk_explained, write_text


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(HIDDEN)]


def write_half(path: Path) -> Path:
    path.write_text("half")
    return path


def failing(number: int, *, at_call: int = 1) -> object:
    calls = []

    def fail(*arguments: object, **options: object) -> None:
        del arguments, options
        calls.append(1)
        if len(calls) >= at_call:
            raise OSError(number, os.strerror(number))

    return fail


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "scores.json"
    write_text(path, "old")
    write_text(path, "new: é")
    assert path.read_bytes() == "new: é".encode()
    assert leftovers(path.parent) == []


def test_an_exception_inside_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError), atomic_file(path) as temporary:
        shutil.copyfile(write_half(temporary), tmp_path / "no" / "folder")
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_an_exception_inside_keeps_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_folder(path) as temporary:
        shutil.copyfile(write_half(temporary / "a"), tmp_path / "no" / "folder")
    assert [(item.name, item.read_text()) for item in path.iterdir()] == [("a", "old")]
    assert leftovers(tmp_path) == []


def test_a_new_folder_replaces_all_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "index"
    for name in ("old", "new"):
        with atomic_folder(path) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / name).write_text(name)
    assert [item.name for item in (path / "deep").iterdir()] == ["new"]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "manifest.yaml"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(PogdiffError, match=r"disk is full: .*manifest\.yaml") as caught:
        write_text(path, "new")
    assert "Free some space" in (caught.value.hint or "")
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_full_disk_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(PogdiffError, match="disk is full"), atomic_folder(path) as temporary:
        (temporary / "a").write_text("new")
    assert (path / "a").read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_rename_that_fails_halfway_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("old")
    rename = os.replace
    calls: list[Path] = []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        rename(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    monkeypatch.setattr(atomic, "_exchanged", lambda first, second: False)  # as on a network file system
    with pytest.raises(PogdiffError, match="disk is full"), atomic_folder(path) as temporary:
        (temporary / "a").write_text("new")
    assert (path / "a").read_text() == "old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(tempfile, "mkstemp", failing(number))
    monkeypatch.setattr(tempfile, "mkdtemp", failing(number))
    with pytest.raises(PogdiffError, match=r"No permission to write .*manifest\.yaml"):
        write_text(tmp_path / "manifest.yaml", "new")
    with pytest.raises(PogdiffError, match=r"No permission to write .*index"), atomic_folder(tmp_path / "index"):
        pytest.fail("there was a folder to write to")


def test_a_full_disk_is_known_by_its_words_where_a_library_hides_the_number(tmp_path: Path) -> None:
    class LibraryError(Exception):
        """As safetensors raises it."""

    with pytest.raises(PogdiffError, match="disk is full"), full_disk_explained(tmp_path):
        raise LibraryError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(LibraryError), full_disk_explained(tmp_path):
        raise LibraryError("something else")


def test_other_failures_pass_through_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "a", "new")
    assert leftovers(tmp_path) == []


def test_a_written_file_may_be_read_by_others_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "text")
        with atomic_folder(tmp_path / "b"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750
