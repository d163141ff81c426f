"""The templates of the families: their settings are ones that the family takes, from training to images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command
from PIL import Image

from pogdiff_cli.project.layout import open_project
from pogdiff_cli.project.templates import find_template
from pogdiff_cli.project.yaml_reader import read_yaml

FAMILIES = {
    "sdxl": ("Open RAIL++-M", "stabilityai/stable-diffusion-xl-base-1.0"),
    "sd3": ("Stability AI Community License", "stabilityai/stable-diffusion-3.5-medium"),
    "flux": ("Non-Commercial License", "black-forest-labs/FLUX.1-dev"),
}
#: What makes it small, and nothing that the template chooses for its family.
SMALL = (
    "data.resolution=32",
    "data.many_at_least=5",
    "train.method=vanilla",
    "train.max_train_steps=1",
    "train.mixed_precision=no",
    "train.rank=2",
    "sample.images_per_identity=1",
    "sample.num_inference_steps=2",
)


@pytest.mark.parametrize("template", list(FAMILIES))
def test_the_settings_of_a_familys_template_train_and_sample_its_models(
    template: str, tmp_path: Path, pogdiff: Command, pictures: Path, folders: Callable[[str], Path]
) -> None:
    root = tmp_path / "p"
    assert pogdiff("init", root, "--template", template, "--images", pictures).status == 0
    settings = [*SMALL, f"pretrained_model_name_or_path={folders(template)}"]
    flags = [word for setting in settings for word in ("--set", setting)]
    for command in ("train", "sample"):
        made = pogdiff(command, "-C", root, *flags, "--gpus", "none")
        assert made.status == 0, made.err
    facts = open_project(root).manifest().record("runs/vanilla/train")
    assert facts is not None
    assert (facts.facts["tuning"], facts.facts["global_batch"]) == ("lora", 8)
    index = json.loads((root / "runs" / "vanilla" / "samples" / "samples.json").read_text())
    for entry in index:
        for image in entry["images"]:
            with Image.open(root / "runs" / "vanilla" / "samples" / image["file"]) as picture:
                assert picture.size == (32, 32)


@pytest.mark.parametrize("template", list(FAMILIES))
def test_a_familys_template_names_its_base_and_the_licence_of_it(template: str) -> None:
    licence, base = FAMILIES[template]
    folder = find_template(template)
    values = read_yaml(folder / "pogdiff.yaml").values
    assert values["pretrained_model_name_or_path"] == base
    for file in ("README.md", "pogdiff.yaml"):
        text = " ".join((folder / file).read_text().split())
        assert licence in text
        assert f"hf download {base} " in text


@pytest.mark.parametrize("template", ["sd15", *FAMILIES])
def test_every_setting_of_training_and_sampling_stands_in_the_same_order_everywhere(template: str) -> None:
    """Who knows one template finds everything in another."""
    first = list(read_yaml(find_template("sd15") / "pogdiff.yaml").values["train"])
    here = list(read_yaml(find_template(template) / "pogdiff.yaml").values["train"])
    assert [key for key in here if key in first] == first
