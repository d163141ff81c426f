"""Weights, adapters and configurations from strangers: nothing in them runs, and each is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from badweights import ASKS_FOR_CODE, Canary, change_json, code, liars, pickles, plant
from conftest import TinyProject
from test_extractors import timm_folder

from pogdiff_cli.engine.exports import read_lora
from pogdiff_cli.engine.tuning import LORA_FILE, load_final
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.extractors import load_extractor
from pogdiff_cli.models.families import open_backbone
from pogdiff_cli.models.vision_language import load_vision_language
from pogdiff_cli.models.weights import resolve_pipeline

__all__ = ["timm_folder"]

TEXT = "text_encoder/model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
Loads = Callable[[Path], Any]


def denoiser(folder: Path) -> Any:
    return opened(folder).load_denoiser()


def text_encoder(folder: Path) -> Any:
    return opened(folder).part("text_encoder")


def tokenizer(folder: Path) -> Any:
    return opened(folder).part("tokenizer")


def vae(folder: Path) -> Any:
    return opened(folder).part("vae")


def opened(folder: Path) -> Any:
    return open_backbone(resolve_pipeline(str(folder), folder.parent), device=torch.device("cpu"))


def extractor(folder: Path) -> Any:
    return load_extractor(f"hf:{folder}#cls")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def sd(tiny_sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd, tmp_path / "sd"))


@pytest.fixture
def vit(tiny_vit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vit, tmp_path / "vit"))


def refused(load: Loads, folder: Path, *words: str) -> PogdiffError:
    with pytest.raises(PogdiffError) as caught:
        load(folder)
    assert caught.value.exit_code == Exit.MISSING
    assert caught.value.hint
    assert [word for word in words if word not in caught.value.message] == []
    return caught.value


def test_the_canaries_act_when_they_are_read(canary: Path, tmp_path: Path) -> None:
    import io
    import pickle

    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.is_dir()
    canary.rmdir()
    torch.load(io.BytesIO(pickles(canary)[".pt"]), weights_only=False)
    assert canary.is_dir()


@pytest.mark.parametrize("kind", [".pkl", ".bin", ".ckpt"])
@pytest.mark.parametrize(
    ("file", "load"), [(UNET, denoiser), (TEXT, text_encoder), ("vae/diffusion_pytorch_model.safetensors", vae)]
)
def test_a_pickle_that_is_called_safetensors_is_refused_and_never_unpickled(
    sd: Path, canary: Path, kind: str, file: str, load: Loads
) -> None:
    (sd / file).write_bytes(pickles(canary)[kind])
    refused(load, sd, file.split("/", maxsplit=1)[0], "cannot be loaded")
    assert not canary.exists()


@pytest.mark.parametrize(("file", "load"), [(UNET, denoiser), (TEXT, text_encoder)])
def test_a_decoy_of_safetensors_does_not_lead_to_the_pickle_beside_it(
    sd: Path, canary: Path, file: str, load: Loads
) -> None:
    weights = sd / file
    weights.rename(weights.with_name("decoy.safetensors"))
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.bin"):
        (weights.parent / name).write_bytes(pickles(canary)[".bin"])
    refused(load, sd, "cannot be loaded")
    assert not canary.exists()


@pytest.mark.parametrize("lie", list(liars()))
def test_safetensors_that_lie_about_themselves_are_refused(sd: Path, vit: Path, lie: str) -> None:
    (sd / TEXT).write_bytes(liars()[lie])
    refused(text_encoder, sd, "text_encoder", "cannot be loaded")
    (vit / "model.safetensors").write_bytes(liars()[lie])
    refused(extractor, vit, "extractor", "cannot be loaded")


@pytest.mark.parametrize(
    ("file", "content", "load"),
    [
        ("model_index.json", b"[" * 200_000, denoiser),
        ("model_index.json", b"\xff", denoiser),
        ("vae/config.json", b"{}", denoiser),
        ("vae/config.json", b"[]", denoiser),
        ("unet/config.json", b'{"in_channels": 4, "quantization_config": {"quant_method": "bitsandbytes"}}', denoiser),
        ("unet/config.json", b'{"in_channels": 4, "block_out_channels": "many"}', denoiser),
        ("text_encoder/config.json", b"[" * 200_000, text_encoder),
        ("text_encoder/config.json", b'{"hidden_size": "many"}', text_encoder),
        ("text_encoder/config.json", b'{"hidden_size": 1000000000}', text_encoder),
        ("text_encoder/config.json", b'{"quantization_config": {"quant_method": "gptq", "bits": 4}}', text_encoder),
        ("tokenizer/tokenizer.json", b"{}", tokenizer),
        ("tokenizer/tokenizer.json", b"\xff\xfe", tokenizer),
        ("scheduler/scheduler_config.json", b'{"num_train_timesteps": "many"}', denoiser),
        ("scheduler/scheduler_config.json", b'{"_class_name": "own.Own", "prediction_type": "own"}', denoiser),
    ],
)
def test_a_damaged_configuration_is_refused_in_one_sentence(sd: Path, file: str, content: bytes, load: Loads) -> None:
    assert (sd / file).is_file()
    (sd / file).write_bytes(content)
    refused(load, sd)


def test_a_component_without_configuration_is_not_loaded_with_a_default_one(sd: Path) -> None:
    (sd / "text_encoder" / "config.json").unlink()
    with pytest.raises(PogdiffError, match="The pipeline is incomplete"):
        text_encoder(sd)


def test_custom_code_beside_whole_weights_is_left_alone(sd: Path, vit: Path, canary: Path) -> None:
    for path in (*sd.rglob("*config*.json"), vit / "config.json", vit / "preprocessor_config.json"):
        change_json(path, **ASKS_FOR_CODE)
    plant(sd, canary)
    plant(vit, canary)
    for load in (denoiser, text_encoder, tokenizer, vae):
        assert load(sd) is not None
    assert extractor(vit).dim == 32
    assert not canary.exists()


@pytest.mark.parametrize("change", [{"model_type": "own"}, {"model_type": "x\x1b[31m"}])
def test_a_model_that_exists_in_its_own_code_alone_is_refused(vit: Path, canary: Path, change: dict[str, str]) -> None:
    change_json(vit / "config.json", **ASKS_FOR_CODE, **change)
    (vit / "own.py").write_text(code(canary))
    refused(extractor, vit, "cannot be loaded")
    assert not canary.exists()
    with pytest.raises(PogdiffError, match="cannot be loaded"):
        load_vision_language(f"hf:{vit}", "judge", "cpu")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("component", "library"),
    [("unet", "own"), ("scheduler", "own.code"), ("vae", "diffusers_modules"), ("text_encoder", "os")],
)
def test_an_index_that_names_a_library_of_its_own_is_refused(
    sd: Path, canary: Path, component: str, library: str
) -> None:
    index = json.loads((sd / "model_index.json").read_text())
    (sd / "model_index.json").write_text(json.dumps(index | {component: [library, "Own"]}))
    (sd / component / "own.py").write_text(code(canary))
    (sd / "own.py").write_text(code(canary))
    with pytest.raises(PogdiffError, match="code of its own"):
        denoiser(sd)
    assert not canary.exists()


def test_an_adapter_beside_a_model_is_not_loaded_over_it(sd: Path, vit: Path, canary: Path) -> None:
    adapter = {"peft_type": "LORA", "target_modules": ["query"], "base_model_name_or_path": "someone/else", "r": 2}
    for folder, load in ((vit, extractor), (sd / "text_encoder", text_encoder)):
        (folder / "adapter_config.json").write_text(json.dumps(adapter))
        (folder / "adapter_model.bin").write_bytes(pickles(canary)[".bin"])
        refused(load, vit if folder == vit else sd, "adapter_config.json")
    with pytest.raises(PogdiffError, match="brings an adapter"):
        load_vision_language(f"hf:{vit}", "captioner", "cpu")
    assert not canary.exists()


@pytest.mark.parametrize("lie", ["pickle", *liars()])
def test_a_damaged_lora_is_refused(sd: Path, tmp_path: Path, canary: Path, lie: str) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "adapter_config.json").write_text("{}")
    (final / LORA_FILE).write_bytes({"pickle": pickles(canary)[".bin"], **liars()}[lie])
    adapter = opened(sd)
    for read in (load_final, read_lora):
        with pytest.raises(PogdiffError, match=r"The LoRA in .* cannot be loaded") as caught:
            read(adapter, final)
        assert "Train the run anew" in (caught.value.hint or "")
    assert not canary.exists()


def test_a_processor_that_wants_a_million_pixels_a_side_is_refused(vit: Path) -> None:
    change_json(vit / "preprocessor_config.json", size={"height": 10**6, "width": 10**6})
    refused(extractor, vit, "more than 4096 pixels")


@pytest.mark.parametrize(
    "change",
    [
        {"model_args": {"checkpoint_path": "model.pth"}},
        {"model_args": {"pretrained_cfg": {"file": "model.pth"}}},
        {"architecture": "hf-hub:someone/else"},
        {"architecture": "local-dir:/elsewhere"},
    ],
)
def test_a_timm_configuration_leads_to_no_other_file(timm_folder: Path, change: dict[str, Any]) -> None:
    change_json(timm_folder / "config.json", **change)
    refused(lambda folder: load_extractor(f"timm:{folder}"), timm_folder, "read something else")


def test_face_networks_that_are_none_are_refused(tmp_path: Path, canary: Path) -> None:
    for content in (b"", b"junk", pickles(canary)[".pkl"]):
        file = tmp_path / "dlib_face_recognition_resnet_model_v1.dat"
        file.write_bytes(content)
        with pytest.raises(PogdiffError, match="cannot be loaded") as caught:
            load_extractor("dlib", opts={"weights": str(file)})
        assert caught.value.exit_code == Exit.MISSING
    assert not canary.exists()


def test_damaged_weights_end_a_command_in_4_with_one_error_and_no_traceback(
    project: TinyProject, sd: Path, canary: Path
) -> None:
    (sd / TEXT).write_bytes(pickles(canary)[".bin"])
    said = project.configure(f"pretrained_model_name_or_path={sd}")("fit-density", "--gpus", "none")
    assert said.status == Exit.MISSING
    assert "text_encoder" in said.err
    assert "cannot be loaded" in said.err
    assert "Internal error" not in said.err
    assert not canary.exists()


@pytest.mark.slow
def test_a_whole_road_among_planted_pickles_and_code_runs_none_of_it(
    project: TinyProject, sd: Path, vit: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (*sd.rglob("*config*.json"), vit / "config.json", vit / "preprocessor_config.json"):
        change_json(path, **ASKS_FOR_CODE)
    plant(sd, canary)
    plant(vit, canary)
    planted = project.configure(
        f"pretrained_model_name_or_path={sd}", *(f"{key}=hf:{vit}#cls" for key in ("index.extractor", "evaluate.face"))
    ).configure(f"evaluate.dino=hf:{vit}#cls", "evaluate.metrics=[dino]", "train.max_train_steps=3")
    trained = planted("train", "--gpus", "none")
    assert trained.status == 0, trained.err
    plant(project.root, canary)
    monkeypatch.chdir(project.root)  # where a module called own would be found first
    for words in (
        ("train", "--gpus", "none", "--set", "train.max_train_steps=4"),
        ("sample", "--gpus", "none"),
        ("evaluate", "--gpus", "none"),
    ):
        said = planted(*words)
        assert said.status == 0, said.err
    assert not canary.exists()
