"""The templates of the families: their settings are ones that the family takes, from training to images."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from pogdiff_cli.models.weights import fetch_command
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
        assert fetch_command(base) in text.replace("\\ # ", "").replace("\\ ", "")


@pytest.mark.parametrize("template", ["sd15", *FAMILIES])
def test_every_setting_of_training_and_sampling_stands_in_the_same_order_everywhere(template: str) -> None:
    """Who knows one template finds everything in another."""
    first = list(read_yaml(find_template("sd15") / "pogdiff.yaml").values["train"])
    here = list(read_yaml(find_template(template) / "pogdiff.yaml").values["train"])
    assert [key for key in here if key in first] == first


#: Files of the published repositories that are of a kind that could be fetched: wanted, and not.
PUBLISHED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (
        ("README.md", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt"),
        (
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.bin",
            "safety_checker/model.safetensors",
            "v1-5-pruned-emaonly.safetensors",
        ),
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": (
        ("README.md", "text_encoder_2/model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
        (
            "vae_1_0/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/model.onnx",
            "text_encoder/flax_model.msgpack",
            "sd_xl_base_1.0.safetensors",
        ),
    ),
    "stabilityai/stable-diffusion-3.5-medium": (
        (
            "README.md",
            "text_encoder_3/model-00001-of-00002.safetensors",
            "text_encoder_3/model.safetensors.index.json",
            "tokenizer_3/spiece.model",
            "transformer/diffusion_pytorch_model.safetensors",
        ),
        (
            "text_encoder_3/model.fp16-00001-of-00002.safetensors",
            "text_encoder_3/model.safetensors.index.fp16.json",
            "text_encoder/model.fp16.safetensors",
            "text_encoders/t5xxl_fp16.safetensors",
            "sd3.5_medium.safetensors",
        ),
    ),
    "black-forest-labs/FLUX.1-dev": (
        (
            "README.md",
            "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            "tokenizer_2/spiece.model",
        ),
        ("flux1-dev.safetensors", "ae.safetensors", "dev_grid.jpg"),
    ),
}


@pytest.mark.parametrize("base", list(PUBLISHED))
def test_what_is_fetched_is_what_is_loaded_and_nothing_twice(base: str) -> None:
    wanted, unwanted = PUBLISHED[base]
    words = shlex.split(fetch_command(base))
    assert words[:3] == ["hf", "download", base]
    options = list(zip(words[3::2], words[4::2], strict=True))
    kept = filter_repo_objects(
        [*wanted, *unwanted, "model_index.json"],
        allow_patterns=[pattern for option, pattern in options if option == "--include"],
        ignore_patterns=[pattern for option, pattern in options if option == "--exclude"],
    )
    assert set(kept) == {*wanted, "model_index.json"}


def test_every_page_names_the_same_command() -> None:
    pages = [Path("README.md"), *sorted(Path("templates").glob("*/README.md")), *Path("templates").glob("*/*.yaml")]
    root = find_template("sd15").parents[1]
    seen = 0
    for page in pages:
        text = " ".join((root / page).read_text().split()).replace("\\ # ", "").replace("\\ ", "")
        for base in PUBLISHED:
            for rest in text.split(f"hf download {base}")[1:]:
                assert f"hf download {base}{rest}".startswith(fetch_command(base)), page
                seen += 1
    assert seen >= 2 * 9 + 1
