"""Every model family: it reads texts as its own pipeline does, trains with each method, resumes, samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import TinyProject
from families import SAVE, save_flux, save_stable_diffusion_3
from PIL import Image
from torch import Tensor
from training import OneBatch, batch_of, loss_of, trainer

from pogdiff_cli.engine.sampler import ImageRequest, SamplingSettings, generate
from pogdiff_cli.engine.tuning import load_final, write_final
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Adapter, FamilyOptions, Guidance
from pogdiff_cli.models.families import open_backbone
from pogdiff_cli.models.weights import resolve_pipeline

CPU = torch.device("cpu")
METHODS = ["vanilla", "pogdiff", "cbdm", "t2h"]
FLOWS = ["sd3", "flux"]
SHORT = {"sd3": FamilyOptions(max_token_length=16), "flux": FamilyOptions(max_token_length=16)}


@pytest.fixture(params=list(SAVE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def adapter(name: str, folders: Callable[[str], Path]) -> Adapter:
    """The family with short captions: attention over 512 paddings tells nothing."""
    return open_backbone(folders(name), device=CPU, options=SHORT.get(name))


def own_pipeline(folder: Path) -> Any:
    """The pipeline as its own class loads it."""
    cls = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    pipeline = cls.from_pretrained(folder, safety_checker=None) if "safety" in _index(folder) else None
    pipeline = pipeline or cls.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _index(folder: Path) -> str:
    return (folder / "model_index.json").read_text()


def test_texts_are_read_as_the_pipeline_reads_them(name: str, folders: Callable[[str], Path]) -> None:
    adapter, pipeline = open_backbone(folders(name), device=CPU), own_pipeline(folders(name))
    texts = ["A photo of Ada.", "two words " * 40]
    known = adapter.encode_text(texts).condition
    arguments = {
        "sd": {"num_images_per_prompt": 1, "do_classifier_free_guidance": False},
        "sd3": {"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False},
    }
    with torch.no_grad():
        found = pipeline.encode_prompt(texts, device=CPU, **arguments.get(name.removesuffix("-v"), {}))
    torch.testing.assert_close(known["hidden"], found[0], rtol=1e-5, atol=1e-5)
    if name in ("sdxl", "sd3"):
        torch.testing.assert_close(known["pooled"], found[2], rtol=1e-5, atol=1e-5)
    if name == "flux":
        torch.testing.assert_close(known["pooled"], found[1], rtol=1e-5, atol=1e-5)


def test_an_empty_caption_is_what_the_pipeline_guides_away_from(folders: Callable[[str], Path]) -> None:
    adapter, pipeline = open_backbone(folders("sdxl"), device=CPU), own_pipeline(folders("sdxl"))
    with torch.no_grad():
        _, negative, _, negative_pooled = pipeline.encode_prompt("Ada", device=CPU)
    mixed = adapter.encode_text(["Ada", ""]).condition
    assert torch.equal(mixed["hidden"][1:], negative)
    assert torch.equal(mixed["pooled"][1:], negative_pooled)
    assert mixed["pooled"][0].abs().min() > 0


@pytest.mark.parametrize("method", METHODS)
def test_each_method_halves_the_loss_of_a_fixed_batch(adapter: Adapter, method: str, tmp_path: Path) -> None:
    one = trainer(
        adapter,
        tmp_path,
        kind=OneBatch,
        method=method,
        max_train_steps=15,
        learning_rate=5e-3,
        checkpointing_steps=100,
    )
    before = loss_of(one)
    one.run()
    assert loss_of(one) < 0.5 * before


def test_a_resumed_run_ends_in_the_same_bits(adapter: Adapter, tmp_path: Path) -> None:
    whole = trainer(adapter, tmp_path / "whole", checkpointing_steps=100)
    whole.run()
    half = trainer(adapter, tmp_path / "halves", max_train_steps=2, checkpointing_steps=2)
    half.run()
    again = trainer(adapter, tmp_path / "halves")
    assert again.resume() == 2
    again.run()
    assert all(torch.equal(again.trainable[key], value) for key, value in whole.trainable.items())


class Spy:
    """Stands before a denoiser and keeps what it is asked."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.calls = denoiser, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append({**{str(i): value for i, value in enumerate(args)}, **kwargs})
        return self.denoiser(*args, **kwargs)


def rows_of(call: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor of a call that has a row for each sample, nested ones included."""
    flat = {**call, **call.get("added_cond_kwargs", {})}
    return {key: value for key, value in flat.items() if isinstance(value, Tensor) and "ids" not in key[:7]}


def test_both_branches_have_one_x_t_and_dropped_captions_have_no_neighbour(
    adapter: Adapter, name: str, tmp_path: Path
) -> None:
    one = trainer(adapter, tmp_path, method="pogdiff", caption_dropout=0.5, train_batch_size=8)
    one.network.forward = spy = Spy(one.denoiser)
    (host,) = one.batches[0]
    one.objective(one.predict, batch_of(one))
    (call,) = spy.calls  # one batched call for both branches
    texts = {"encoder_hidden_states", "pooled_projections", "text_embeds"}
    second, first = host.neighbour_rows, slice(0, 8)
    assert 0 < len(second) < 8
    for key, value in rows_of(call).items():
        own, other = value[first][second], value[8:]
        assert torch.equal(own, other) == (key not in texts), key
    empty = adapter.encode_text([""]).condition["hidden"]
    dropped = [torch.equal(row, empty[0]) for row in host.condition["hidden"]]
    assert any(dropped)
    assert not any(dropped[i] for i in second)
    if name == "sdxl":
        assert torch.equal(call["added_cond_kwargs"]["time_ids"][8:], host.condition["time_ids"][second])
        assert len(host.condition["time_ids"].unique(dim=0)) > 1


def test_flow_schedules_bring_their_shift_unless_it_depends_on_the_resolution(folders: Callable[[str], Path]) -> None:
    shifts = {name: open_backbone(folders(name), device=CPU).times.shift for name in FLOWS}  # type: ignore[attr-defined]
    assert shifts == {"sd3": 3.0, "flux": 1.0}


def settings(**changes: Any) -> SamplingSettings:
    values = {
        "seed": 0,
        "resolution": 32,
        "num_inference_steps": 2,
        "guidance": Guidance(),
        "negative_prompt": "",
        "scheduler": "auto",
        "batch_size": 2,
    }
    return SamplingSettings(**(values | changes))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


def test_images_are_those_of_the_family_s_own_pipeline(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = open_backbone(folders(name), device=CPU)
    request = ImageRequest(prompt="Ada", noise_key=1, seed=0, path=tmp_path / "a.png")
    generate(adapter, adapter.load_denoiser(), [request], settings(scheduler="native"))
    from pogdiff_cli.data.draws import Stream, normals

    noise = torch.from_numpy(normals(0, Stream.SAMPLE, 0, np.array([1]), adapter.latent_shape(32)))
    pipeline = own_pipeline(folders(name))
    if name == "flux":
        noise = pipeline._pack_latents(noise, 1, *noise.shape[1:])
    scale = {"sd": 7.5, "sd-v": 7.5, "sdxl": 5.0, "sd3": 7.0, "flux": 3.5}[name]
    size = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": scale}
    expected = np.asarray(pipeline("Ada", latents=noise, **size).images[0], dtype=int)
    assert np.abs(pixels(request.path) - expected).max() <= 1


def test_a_negative_prompt_and_guidance_change_the_image(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = open_backbone(folders(name), device=CPU)
    torch.manual_seed(5)
    denoiser = adapter.load_denoiser()
    guided = Guidance(guidance_scale=6.0, true_cfg_scale=6.0)
    images = []
    for number, (negative, guidance) in enumerate([("", guided), ("x" * 60, guided), ("", Guidance(guidance_scale=1))]):
        request = ImageRequest(prompt="Ada", noise_key=1, seed=0, path=tmp_path / f"{number}.png")
        generate(adapter, denoiser, [request], settings(guidance=guidance, negative_prompt=negative))
        images.append(pixels(request.path))
    assert not np.array_equal(images[0], images[2])
    assert not np.array_equal(images[0], images[1])


def test_ddim_is_for_schedules_of_betas(folders: Callable[[str], Path]) -> None:
    for name in SAVE:
        adapter = open_backbone(folders(name), device=CPU)
        if name in FLOWS:
            assert type(adapter.scheduler("auto")).__name__ == "FlowMatchEulerDiscreteScheduler"
            with pytest.raises(PogdiffError, match="DDIM does not sample flow models") as refusal:
                adapter.scheduler("ddim")
            assert refusal.value.exit_code == Exit.USAGE
        else:
            assert type(adapter.scheduler("auto")).__name__ == type(adapter.scheduler("ddim")).__name__
            assert type(adapter.scheduler("ddim")).__name__ == "DDIMScheduler"


@pytest.mark.parametrize("dora", [False, True])
def test_lora_of_each_family_is_read_by_its_own_pipeline(
    adapter: Adapter, name: str, folders: Callable[[str], Path], dora: bool, tmp_path: Path
) -> None:
    one = trainer(adapter, tmp_path, tuning="lora", rank=2, lora_alpha=6, use_dora=dora, learning_rate=1e-2)
    assert {key.split(".lora_")[-1].split(".")[0] for key in one.trainable} == {"A", "B"} | (
        {"magnitude_vector"} if dora else set()
    )
    one.run()
    final = one.final_denoiser()
    (tmp_path / "final").mkdir()
    write_final(adapter, final, tmp_path / "final", "lora")
    pipeline = own_pipeline(folders(name))
    pipeline.load_lora_weights(tmp_path / "final")
    batch = batch_of(one)
    with torch.no_grad():
        expected, base, ours, theirs = (
            adapter.predict(denoiser.eval(), batch.x_t, batch.t, batch.condition)
            for denoiser in (
                final,
                adapter.load_denoiser(),
                load_final(adapter, tmp_path / "final"),
                getattr(pipeline, adapter.denoiser_name),
            )
        )
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5)
    assert (base - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sdxl", *FLOWS], indirect=False)
def test_each_family_goes_the_road_from_the_command_line(
    name: str, folders: Callable[[str], Path], project: TinyProject
) -> None:
    short = ("train.max_token_length=75",) if name == "sdxl" else ("train.max_token_length=24",)
    one = project.configure(f"pretrained_model_name_or_path={folders(name)}", *short, "train.max_train_steps=2")
    trained = one("train", "--gpus", "none")
    assert trained.status == 0, trained.err
    sampled = one("sample", "--json", "--gpus", "none")
    assert sampled.status == 0, sampled.err
    final = Path(project.root) / "runs/pogdiff/final"
    pipeline = own_pipeline(final)
    assert type(pipeline).__name__ == type(own_pipeline(folders(name))).__name__
    facts = json.loads(sampled.out)["stages"][0]["facts"]
    assert facts["scheduler"] == ("DDIMScheduler" if name == "sdxl" else "FlowMatchEulerDiscreteScheduler")
    assert len(list((Path(project.root) / "runs/pogdiff/samples").glob("*/*.png"))) == 8


def test_stable_diffusion_3_does_without_t5(tmp_path: Path) -> None:
    whole = open_backbone(save_stable_diffusion_3(tmp_path / "whole"), device=CPU)
    folder = save_stable_diffusion_3(tmp_path / "small", with_t5=False)
    adapter = open_backbone(resolve_pipeline(str(folder), tmp_path), device=CPU)
    assert adapter.token_limit == 75
    assert whole.token_limit == 255
    hidden = adapter.encode_text(["Ada"]).condition["hidden"]
    assert hidden.shape == whole.encode_text(["Ada"]).condition["hidden"].shape
    assert not hidden[:, 77:].any()
    adapter.save(adapter.load_denoiser(), tmp_path / "copy")
    copy = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path / "copy", text_encoder_3=None, tokenizer_3=None)
    assert torch.equal(copy.transformer.pos_embed.proj.weight, adapter.load_denoiser().pos_embed.proj.weight)


def test_flux_without_a_guidance_embedding_is_asked_without_one(tmp_path: Path) -> None:
    guided, plain = (
        open_backbone(save_flux(tmp_path / str(embeds), guidance_embeds=embeds), device=CPU) for embeds in (True, False)
    )
    for adapter, wanted in ((guided, [1.0, 1.0]), (plain, None)):
        spy = Spy(adapter.load_denoiser())
        condition = {
            key: value.expand(2, *value.shape[1:]) for key, value in adapter.encode_text(["a"]).condition.items()
        }
        adapter.predict(spy, torch.zeros(2, 4, 4, 4), torch.tensor([10.0, 500.0]), condition)  # type: ignore[arg-type]
        (call,) = spy.calls
        assert (None if call["guidance"] is None else call["guidance"].tolist()) == wanted
        assert call["timestep"].tolist() == pytest.approx([0.01, 0.5])


def test_a_pipeline_of_another_kind_is_refused_by_name(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders("sd"), tmp_path / "copy"))
    index = json.loads(_index(folder))
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "KandinskyPipeline"}))
    with pytest.raises(PogdiffError, match="KandinskyPipeline, which pogdiff does not train") as refusal:
        open_backbone(folder, device=CPU)
    assert "StableDiffusionXLPipeline" in (refusal.value.hint or "")
    (folder / "model_index.json").write_text(json.dumps(index))
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"in_channels": 9}))
    with pytest.raises(PogdiffError, match="reads 9 channels, not the 4"):
        open_backbone(folder, device=CPU)


@pytest.mark.parametrize(
    "change", [{"_class_name": "EDMEulerScheduler"}, {"prediction_type": "sample"}], ids=["edm", "sample"]
)
def test_a_schedule_that_would_be_trained_wrongly_is_refused(
    change: dict[str, str], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders("sdxl"), tmp_path / "copy"))
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PogdiffError, match="which is not trained"):
        open_backbone(folder, device=CPU)


def test_pickled_weights_of_any_encoder_are_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders("sd3"), tmp_path / "copy"))
    weights = folder / "text_encoder_3" / "model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(PogdiffError, match=r"no safetensors file in text_encoder_3/"):
        resolve_pipeline(str(folder), tmp_path)


def test_a_side_that_cannot_be_packed_is_refused_with_one_that_can(folders: Callable[[str], Path]) -> None:
    adapter = open_backbone(folders("flux"), device=CPU)
    with pytest.raises(PogdiffError, match="multiple of 16, not 40") as refusal:
        adapter.encode_images(torch.zeros(1, 3, 40, 40))
    assert "32" in (refusal.value.hint or "")


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # Flux's own norms under autocast
@pytest.mark.parametrize(
    "keys",
    [
        {"mixed_precision": "bf16", "gradient_checkpointing": True, "tuning": "lora", "neighbour_grad": "stop"},
        {"use_ema": True, "ema_decay": 0.5, "noise_offset": 0.1, "snr_gamma": 5.0, "mixed_precision": "bf16"},
    ],
    ids=["lora", "full"],
)
def test_precision_checkpointing_and_weights_of_steps_suit_every_family(
    adapter: Adapter, keys: dict[str, Any], tmp_path: Path
) -> None:
    more = {"max_train_steps": 14, "learning_rate": 1e-2, "checkpointing_steps": 100}
    one = trainer(adapter, tmp_path, kind=OneBatch, method="pogdiff", **more, **keys)
    before = loss_of(one)
    one.run()
    assert one.skipped == 0
    assert loss_of(one) < 0.9 * before
