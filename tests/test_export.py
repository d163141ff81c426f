"""What is exported is what was trained: each format, read by the loaders of others, gives the same images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from conftest import TinyProject
from families import SAVE
from peft import PeftModel
from safetensors.torch import load_file
from tiny import save_stable_diffusion
from torch import Tensor
from training import trainer

from pogdiff_cli.engine import exports
from pogdiff_cli.engine.tuning import load_final, write_final
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Adapter, FamilyOptions, Guidance
from pogdiff_cli.models.families import open_backbone
from pogdiff_cli.models.original_names import unet_name
from pogdiff_cli.report.model_card import CardFacts, model_card
from pogdiff_cli.stages.export import licence_of

CPU = torch.device("cpu")
FLOWS = ("sd3", "flux")
LORA = {"tuning": "lora", "rank": 2, "lora_alpha": 6, "learning_rate": 3e-2}


def trained(folder: Path, base: Path, **keys: Any) -> tuple[Adapter, Path]:
    """Some steps on a base that move its weights far enough to be seen, and the run's final folder."""
    adapter = open_backbone(base, device=CPU, options=FamilyOptions(max_token_length=None))
    short = base.name in FLOWS
    options = FamilyOptions(max_token_length=16 if short else None)
    one = trainer(open_backbone(base, device=CPU, options=options), folder / "run", **({"learning_rate": 3e-3} | keys))
    one.run()
    (folder / "final").mkdir()
    write_final(adapter, one.final_denoiser(), folder / "final", keys.get("tuning", "full"))
    return adapter, folder / "final"


def image(adapter: Adapter, pipeline: Any) -> np.ndarray:
    """One image in [0, 1] of a pipeline from fixed noise, by the base's own scheduler."""
    torch.manual_seed(3)
    noise = torch.randn(1, *adapter.latent_shape(32))
    texts = adapter.encode_text(["A photo of Ada.", ""]).condition
    first, second = ({name: value[i : i + 1] for name, value in texts.items()} for i in range(2))
    arguments = adapter.sampling_arguments(first, second, noise, Guidance(guidance_scale=3.0))
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 32, "num_inference_steps": 3}
    return np.asarray(pipeline(**arguments, **size, output_type="np").images[0])


def source_image(adapter: Adapter, final: Path) -> np.ndarray:
    return image(adapter, adapter.pipeline(load_final(adapter, final), scheduler="native"))


def base_image(adapter: Adapter) -> np.ndarray:
    return image(adapter, adapter.pipeline(adapter.load_denoiser(), scheduler="native"))


def load(adapter: Adapter, folder: Path) -> Any:
    index = json.loads((folder / "model_index.json").read_text())
    return getattr(diffusers, index["_class_name"]).from_pretrained(folder)


@pytest.mark.parametrize("keys", [{}, LORA, LORA | {"use_dora": True}], ids=["full", "lora", "dora"])
@pytest.mark.parametrize("name", [name for name in SAVE if name != "sd-v"])
def test_a_diffusers_folder_gives_the_same_images(
    name: str, keys: dict[str, Any], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter, final = trained(tmp_path, folders(name), **keys)
    expected = source_image(adapter, final)
    exports.write_pipeline(adapter, final, tmp_path / "out")
    assert np.abs(image(adapter, load(adapter, tmp_path / "out")) - expected).max() < 1e-4
    assert np.abs(base_image(adapter) - expected).max() > 1e-3


@pytest.mark.parametrize("keys", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl"])
def test_a_single_file_gives_the_same_images(
    name: str, keys: dict[str, Any], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    sd2 = name == "sd2"  # OpenCLIP's encoder and v-prediction
    base = (
        save_stable_diffusion(tmp_path / "sd2", hidden_act="gelu", prediction_type="v_prediction")
        if sd2
        else folders(name)
    )
    adapter, final = trained(tmp_path, base, **keys)
    expected = source_image(adapter, final)
    file = tmp_path / "one.safetensors"
    exports.write_single_file(adapter, base, final, file, "float32")
    cls = diffusers.StableDiffusionXLPipeline if name == "sdxl" else diffusers.StableDiffusionPipeline
    pipeline = cls.from_single_file(file, config=str(base), local_files_only=True)
    assert np.abs(image(adapter, pipeline) - expected).max() < 1e-4
    # the encoders came from the file as well
    text, ours = pipeline.text_encoder.state_dict(), adapter.part("text_encoder").state_dict()
    assert all(torch.equal(text[key], ours[key]) for key in ours)
    if name == "sdxl":
        text, ours = pipeline.text_encoder_2.state_dict(), adapter.part("text_encoder_2").state_dict()
        assert all(torch.equal(text[key], ours[key]) for key in ours)


def test_names_of_stable_diffusion_1_5_are_those_of_its_authors() -> None:
    # layer numbers of the published checkpoint, whose UNet has four resolutions of two layers
    config = {
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    attention = "transformer_blocks.0.attn2.to_k.weight"
    published = {
        f"down_blocks.0.attentions.1.{attention}": f"input_blocks.2.1.{attention}",
        "down_blocks.2.downsamplers.0.conv.bias": "input_blocks.9.0.op.bias",
        "mid_block.attentions.0.norm.weight": "middle_block.1.norm.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.3.resnets.2.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
        "time_embedding.linear_2.weight": "time_embed.2.weight",
    }
    assert {name: unet_name(name, config) for name in published} == published


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_single_file_has_the_precision_asked_for(
    precision: Any, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter, final = trained(tmp_path, folders("sd"), max_train_steps=1)
    exports.write_single_file(adapter, folders("sd"), final, tmp_path / "one.safetensors", precision)
    assert {value.dtype for value in load_file(tmp_path / "one.safetensors").values()} == {getattr(torch, precision)}


@pytest.mark.parametrize("name", [name for name in SAVE if name != "sd-v"])
def test_peft_folders_are_read_by_peft_and_by_diffusers(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter, final = trained(tmp_path, folders(name), **LORA)
    expected = source_image(adapter, final)
    exports.write_peft(adapter, final, tmp_path / "out")
    pipeline = load(adapter, folders(name))
    pipeline.load_lora_weights(tmp_path / "out", weight_name="pytorch_lora_weights.safetensors")
    assert np.abs(image(adapter, pipeline) - expected).max() < 1e-4
    wrapped: Any = PeftModel.from_pretrained(adapter.load_denoiser(), str(tmp_path / "out"))
    by_peft = adapter.pipeline(wrapped.merge_and_unload(), scheduler="native")
    assert np.abs(image(adapter, by_peft) - expected).max() < 1e-4


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_kohya_keys_are_read_with_their_alpha(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    adapter, final = trained(tmp_path, folders(name), **LORA)
    expected = source_image(adapter, final)
    exports.write_kohya(adapter, folders(name), final, tmp_path / "lora.safetensors")
    keys: dict[str, Tensor] = load_file(tmp_path / "lora.safetensors")
    assert {key.split(".", 1)[1] for key in keys} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert all(key.startswith("lora_unet_") for key in keys)
    assert {float(value) for key, value in keys.items() if key.endswith("alpha")} == {6.0}
    assert any("input_blocks" in key for key in keys) == (name == "sdxl")
    pipeline = load(adapter, folders(name))
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    assert np.abs(image(adapter, pipeline) - expected).max() < 1e-4


@pytest.mark.parametrize("name", FLOWS)
def test_formats_that_a_family_does_not_have_are_refused_with_one_that_it_has(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter, final = trained(tmp_path, folders(name), **LORA, max_train_steps=1)
    with pytest.raises(PogdiffError, match=f"not for {adapter.family}") as refusal:
        exports.write_single_file(adapter, folders(name), final, tmp_path / "a.safetensors", "float32")
    assert "diffusers" in (refusal.value.hint or "")
    with pytest.raises(PogdiffError, match=f"not for {adapter.family}") as refusal:
        exports.write_kohya(adapter, folders(name), final, tmp_path / "b.safetensors")
    assert "peft" in (refusal.value.hint or "")


def test_export_from_the_command_line_writes_weights_and_a_card(project: TinyProject, tmp_path: Path) -> None:
    missing = project("export", tmp_path / "out")
    assert missing.status == Exit.MISSING
    assert project("train", "--method", "vanilla").status == 0
    out = tmp_path / "exported" / "model"
    first = project("export", out, "--json")
    assert first.status == 0, first.err
    assert json.loads(first.out)["format"] == "diffusers"
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "diffusers"
    assert "license" not in front
    for words in ("names no licence", "| training images | 14 |", "1 identities", "vanilla", "not been evaluated"):
        assert words in card
    assert not any(name in card for name in ("Ada", "Turing", "Hopper"))  # identities are counted, never named

    again = project("export", out)
    assert again.status == Exit.USAGE
    assert "--force" in again.err
    assert project("export", out, "--force").status == 0

    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("ten years")
    refused = project("export", tmp_path / "precious", "--force")
    assert refused.status == Exit.USAGE
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "ten years"

    file = tmp_path / "one.safetensors"
    assert project("export", file, "--format", "single-file").status == 0
    assert file.is_file()
    assert (tmp_path / "one.md").is_file()
    lora = project("export", tmp_path / "lora.safetensors", "--format", "kohya")
    assert lora.status == Exit.USAGE
    assert "fully fine-tuned" in lora.err
    assert not (tmp_path / "lora.safetensors").exists()


def test_the_card_has_the_licence_and_the_results(project: TinyProject, tiny_sd: Path, tmp_path: Path) -> None:
    import shutil

    base = Path(shutil.copytree(tiny_sd, tmp_path / "base"))
    (base / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags: [x]\n---\n# Base\n")
    one = project.configure(f"pretrained_model_name_or_path={base}", "train.method=vanilla", "train.max_train_steps=1")
    assert one("train").status == 0
    assert one("evaluate", "--metrics", "dino,recall").status == 0
    assert one("export", tmp_path / "out").status == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "creativeml-openrail-m"
    scores = json.loads((Path(project.root) / "runs/vanilla/evaluation/scores.json").read_text())
    value = scores["groups"]["few"]["metrics"]["similarity"]["value"]
    assert f"{value:.3f}" in card
    assert "few" in card


@pytest.mark.parametrize(
    ("front", "named", "written"),
    [
        ("license: openrail++", "openrail++", {"license": "openrail++"}),
        (
            "license: other\nlicense_name: stabilityai-ai-community\nlicense_link: LICENSE.md",
            "stabilityai-ai-community",
            {"license": "other", "license_name": "stabilityai-ai-community"},
        ),
        (
            "license: other\nlicense_name: flux-1-dev-non-commercial-license",
            "flux-1-dev-non-commercial-license",
            {"license": "other", "license_name": "flux-1-dev-non-commercial-license"},
        ),
    ],
)
def test_licences_of_published_bases_keep_their_names(
    front: str, named: str, written: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\ntags:\n- text-to-image\n---\n# A model\n")
    assert licence_of(tmp_path) == named
    facts = CardFacts(
        title="x", base="b", licence=named, family="f", tuning="full", data={"a": "b"}, training={"a": "b"}, scores=None
    )
    found = yaml.safe_load(model_card(facts).split("---")[1])
    assert {key: value for key, value in found.items() if key.startswith("license")} == written
    assert f"`{named}`" in model_card(facts)
