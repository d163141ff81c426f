"""What users get wrong: one clear line, the next step, the right exit status, and no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Command, Outcome, TinyProject, write_pictures

from pogdiff_cli.errors import Exit

Make = Callable[..., TinyProject]


@pytest.fixture
def made_of(tmp_path: Path, pogdiff: Command, tiny_sd: Path, tiny_vit: Path) -> Make:
    """``made_of({"Ada": 1}, metadata=...)``: a project whose pictures may be wrong; init's own checks passed over."""

    def make(counts: dict[str, int], metadata: str | None = None) -> TinyProject:
        root = tmp_path / "project"
        assert pogdiff("init", root, "--template", "sd15").status == 0
        write_pictures(root / "data" / "images", counts)
        settings = [setting.format(sd=tiny_sd, vit=tiny_vit) for setting in TINY]
        if metadata is not None:
            (root / "data" / "metadata.jsonl").write_text(metadata)
            settings.append("data.metadata=data/metadata.jsonl")
        return TinyProject(root=root, settings=tuple(settings), command=pogdiff)

    return make


def refused(said: Outcome, status: Exit, *parts: str) -> None:
    """One error with what is wrong, a line with what to do next, nothing on stdout, no traceback."""
    assert said.status == status, said
    errors = [line for line in said.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert said.err.splitlines()[-1].startswith(("  ", "Error: "))
    assert [part for part in parts if part not in said.err] == []
    assert "Traceback" not in said.err
    assert "Internal error" not in said.err


def test_no_images_at_all(made_of: Make) -> None:
    project = made_of({})
    for name in ("inspect", "caption", "index", "train", "run"):
        refused(project(name), Exit.DATA, "names no image", "folder of pictures per identity")


def test_a_missing_folder_of_images(made_of: Make) -> None:
    project = made_of({}).configure("data.images=pictures")
    refused(project("inspect"), Exit.DATA, "pictures does not exist", "data.images")


def test_one_image_only(made_of: Make) -> None:
    project = made_of({"Ada": 1})
    refused(project("index"), Exit.DATA, "one training image only", "Add images")
    refused(project("train", "--gpus", "none"), Exit.DATA, "one training image only")


def test_no_image_to_train_on(made_of: Make) -> None:
    rows = [{"file_name": f"Ada/{n}.png", "identity": "Ada", "split": "heldout"} for n in range(2)]
    project = made_of({"Ada": 2}, "".join(json.dumps(row) + "\n" for row in rows))
    refused(project("index"), Exit.DATA, "No image is in the training split", "split 'train'")


def test_an_identity_with_one_image_works_and_is_warned_of(made_of: Make) -> None:
    project = made_of({"Ada": 3, "Alan": 1})
    said = project("inspect", "--json")
    assert said.status == 0
    assert any("Alan" in warning or "one image" in warning for warning in json.loads(said.out)["warnings"])
    assert project("index", "--gpus", "none").status == 0


def test_an_empty_caption_where_the_users_own_are_asked_for(made_of: Make) -> None:
    rows = [{"file_name": f"Ada/{n}.png", "identity": "Ada", "text": text} for n, text in enumerate(["Ada smiles", ""])]
    project = made_of({"Ada": 2}, "".join(json.dumps(row) + "\n" for row in rows))
    refused(
        project("caption", "--captioner", "files"),
        Exit.DATA,
        "Ada/1.png has no caption",
        "set caption.captioner to 'template'",
    )


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ('{"identity": "Ada"}', ["metadata.jsonl:1", "file_name"]),
        ('{"filename": "Ada/0.png", "identity": "Ada"}', ["metadata.jsonl:1", "file_name"]),
        ('{"file_name": "Ada/0.png", "identity": ""}', ["metadata.jsonl:1", "identity is empty"]),
        ('{"file_name": "Ada/9.png", "identity": "Ada"}', ["metadata.jsonl:1", "Ada/9.png"]),
        ('{"file_name": "../pogdiff.yaml", "identity": "Ada"}', ["metadata.jsonl:1", "../pogdiff.yaml"]),
        ('{"file_name": "Ada/0.png", "split": "test"}', ["metadata.jsonl:1", "'test'", "'heldout'"]),
        ("{torn", ["metadata.jsonl:1"]),
        ("", ["names no image"]),
    ],
)
def test_a_wrong_line_of_metadata_is_named(made_of: Make, row: str, parts: list[str]) -> None:
    project = made_of({"Ada": 2}, row + "\n" if row else "")
    refused(project("inspect"), Exit.DATA, *parts)


def test_a_prompt_with_a_column_that_is_not_there(made_of: Make) -> None:
    project = made_of({"Ada": 2}).configure('caption.prompts=["A photo of {name}, {pose}."]')
    said = project("caption")
    assert said.status in (Exit.USAGE, Exit.DATA)
    assert "pose" in said.err
    assert "Internal error" not in said.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "--method", "pogdif"], ["'pogdif'", "Did you mean 'pogdiff'?"]),
        (["train", "--sampling", "balanse"], ["'balanse'", "Did you mean 'balanced'?"]),
        (["evaluate", "--metrics", "fid,recal"], ["'recal'", "Did you mean 'recall'?"]),
        (["train", "--set", "train.lr=1"], ["unknown key 'train.lr'"]),
        (["train", "--set", "learning_rate"], ["not KEY=VALUE"]),
        (["train", "--max-train-steps", "0"], ["greater than or equal to 1"]),
    ],
)
def test_an_unknown_method_metric_or_setting(project: TinyProject, arguments: list[str], parts: list[str]) -> None:
    refused(project(*arguments), Exit.USAGE, *parts)


def test_an_extractor_of_no_known_kind(project: TinyProject) -> None:
    said = project("index", "--gpus", "none", "--extractor", "resnet50")
    assert said.status in (Exit.USAGE, Exit.MISSING)
    assert "resnet50" in said.err
    assert "Internal error" not in said.err


def test_a_model_that_is_not_on_this_machine_names_the_command_that_fetches_it(project: TinyProject) -> None:
    said = project.configure("pretrained_model_name_or_path=some/model")("caption")
    refused(said, Exit.MISSING, "'some/model' are not on this machine", "hf download some/model")


def test_a_model_folder_that_does_not_exist(project: TinyProject) -> None:
    said = project.configure("pretrained_model_name_or_path=./nowhere")("caption")
    refused(said, Exit.MISSING, "There is no model folder", "pretrained_model_name_or_path")


def test_a_folder_that_is_no_model(project: TinyProject) -> None:
    said = project.configure(f"pretrained_model_name_or_path={project.root}")("caption")
    refused(said, Exit.MISSING, "no model_index.json")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["sample"], "pogdiff train"),
        (["evaluate"], "pogdiff train"),
        (["sample", "--run", "other"], "pogdiff train --name other"),
        (["report"], "pogdiff run"),
    ],
)
def test_what_was_not_made_yet_names_the_command_that_makes_it(
    project: TinyProject, arguments: list[str], hint: str
) -> None:
    refused(project(*arguments), Exit.MISSING, hint)


def test_a_project_whose_manifest_is_torn(project: TinyProject) -> None:
    (project.root / "manifest.yaml").write_text("stages: [\n")
    said = project("status")
    assert said.status in (Exit.FAILURE, Exit.USAGE)
    assert "manifest.yaml:" in said.err
    assert "Internal error" not in said.err


def test_identities_that_look_like_numbers_keep_their_names(made_of: Make) -> None:
    project = made_of({"1e5": 2, "007": 2}).configure("caption.names=keep")
    assert project("caption").status == 0
    lines = (project.root / "artifacts" / "captions.jsonl").read_text().splitlines()
    assert {json.loads(line)["name"] for line in lines} == {"1e5", "007"}
    assert project("caption", "--set", "seed=3").status == 0  # reads the names it wrote
    lines = (project.root / "artifacts" / "captions.jsonl").read_text().splitlines()
    assert {json.loads(line)["name"] for line in lines} == {"1e5", "007"}


def test_real_names_are_gone_once_generic_ones_are_asked_for(made_of: Make) -> None:
    project = made_of({"Ada Lovelace": 2, "Alan Turing": 2})
    assert project("caption", "--set", "caption.names=keep").status == 0
    assert "Lovelace" in (project.root / "artifacts" / "captions.jsonl").read_text()
    assert project("caption").status == 0
    captions = (project.root / "artifacts" / "captions.jsonl").read_text().splitlines()
    assert all("Lovelace" not in json.loads(line)["caption"] for line in captions)
