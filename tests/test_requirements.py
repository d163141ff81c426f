"""What a fresh project lacks is said at once, all of it, with commands that fetch it, before torch is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Command, TinyProject
from test_recipes import PRINTED, published

from pogdiff_cli.errors import Exit
from pogdiff_cli.project.layout import open_project
from pogdiff_cli.project.templates import template_names

COMMANDS = ("caption", "index", "fit-density", "train", "train --dry-run", "sample", "run")
HEAVY = ("torch", "transformers", "diffusers", "faiss", "scipy")
SAY = """
import io, json, sys, contextlib
from pogdiff_cli.cli.app import _status
told = {}
for command in sys.argv[2:]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = _status([*command.split(), "-C", sys.argv[1], "--gpus", "none"])
    told[command] = (status, said.getvalue(), [name for name in HEAVY if name in sys.modules])
print(json.dumps(told))
"""
TEMPLATES = [name for name in template_names() if name != "faces"]  # which brings its own model


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for name in ("agedb", "digiface", "vggface"):
        published(root / name, name, many=24, few=210)
    return root


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_fresh_project_says_what_to_fetch_before_torch_is_loaded(
    template: str, tmp_path: Path, pogdiff: Command, pictures: Path, sets: Path
) -> None:
    images = sets / template.partition("-")[0] if template in PRINTED else pictures
    made = pogdiff("init", tmp_path / "p", "--template", template, "--images", images)
    assert made.status == 0, made.err
    config = open_project(tmp_path / "p").config
    base, captioner = config.pretrained_model_name_or_path, config.caption.captioner
    model, encoder = f"hf download {base} ", "hf download facebook/dinov2-base "
    vlm = [f"hf download {captioner.removeprefix('hf:')} "] if captioner.startswith("hf:") else []
    wanted = {
        "caption": [model, *vlm],
        "index": [encoder],
        "fit-density": [model, *vlm],
        "train": [model, encoder, *vlm],
        "train --dry-run": [model],
        "sample": [model],
        "run": [model, encoder, "face-recognition-models", *vlm],
    }
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "COLUMNS": "10000"}
    start = time.monotonic()
    said = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY!r}\n{SAY}", str(tmp_path / "p"), *COMMANDS],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - start < 30.0  # seven commands on a busy machine; one is a second elsewhere
    for command, (status, text, loaded) in json.loads(said.stdout).items():
        assert status == Exit.MISSING, text
        assert loaded == [], command
        assert [what for what in wanted[command] if what not in text] == [], command


def test_what_was_made_needs_its_makers_no_more(project: TinyProject, tmp_path: Path, tiny_vit: Path) -> None:
    copy = shutil.copytree(tiny_vit, tmp_path / "vit")
    copied = project.configure(f"index.extractor=hf:{copy}#cls")
    assert copied("index", "--gpus", "none").status == 0
    shutil.rmtree(copy)
    assert "up to date" in copied("index", "--gpus", "none").out
    assert copied("index", "--gpus", "none", "--force").status == Exit.MISSING


def test_a_run_of_another_method_needs_no_extractor_of_neighbours(project: TinyProject) -> None:
    without = project.configure("index.extractor=hf:nobody/nothing#cls", "train.max_train_steps=1")
    refused = without("train", "--gpus", "none")
    assert refused.status == Exit.MISSING
    assert "hf download nobody/nothing" in refused.err
    assert without("train", "--gpus", "none", "--method", "vanilla").status == 0


def test_a_plan_needs_no_weights(project: TinyProject) -> None:
    absent = project.configure("index.extractor=hf:nobody/nothing#cls")
    assert absent("index", "--dry-run", "--gpus", "none").status == 0


@pytest.mark.parametrize(
    ("settings", "name", "remedy"),
    [
        (["caption.captioner=hf:some/llava"], "captioner hf:some/llava", "hf download some/llava"),
        (["caption.captioner=openai:gpt"], "captioner openai:gpt", "export OPENAI_API_KEY="),
        (
            ["evaluate.metrics=[judge]", "evaluate.judge.model=hf:some/judge"],
            "judge hf:some/judge",
            "hf download some/judge",
        ),
        (["index.extractor=hf:some/vit#cls"], "extractor hf:some/vit#cls", "hf download some/vit"),
        (["index.extractor=timm:vit_tiny"], "extractor timm:vit_tiny", "hf download timm/vit_tiny"),
    ],
)
def test_doctor_names_what_is_missing_and_how_to_get_it(
    project: TinyProject, settings: list[str], name: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    looked = project.configure(*settings)("doctor", "--json")
    check = next(check for check in json.loads(looked.out)["checks"] if check["name"] == name)
    assert (looked.status, check["state"]) == (Exit.MISSING, "missing")
    assert remedy in check["remedy"]


def test_doctor_finds_nothing_missing_where_all_is_there(project: TinyProject) -> None:
    looked = project("doctor", "--json")
    checks = {check["name"]: check["state"] for check in json.loads(looked.out)["checks"]}
    assert looked.status == 0, looked.out
    assert checks["model"] == "ok"
    assert [state for name, state in checks.items() if name.startswith("extractor")] == ["ok"]


def test_the_manifest_says_which_extractor_saw_the_pictures_and_how(project: TinyProject, tiny_vit: Path) -> None:
    from pogdiff_cli.models.extractors import load_extractor

    assert project("index", "--gpus", "none").status == 0
    record = open_project(project.root).manifest().record("index")
    assert record is not None
    extractor = load_extractor(f"hf:{tiny_vit}#cls")
    assert record.facts["extractor_digest"] == extractor.digest
    assert record.facts["preprocessing"] == extractor.preprocessing
    assert record.facts["preprocessing"]["size"] == {"height": 32, "width": 32}
