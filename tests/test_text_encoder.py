"""LoRA on text encoders: where its gradient comes from, what is kept of it, and who reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import TinyProject
from families import SAVE
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from test_export import image, load
from torch import Tensor
from training import batch_of, loss_of, trainer

from pogdiff_cli.engine import exports
from pogdiff_cli.engine.estimate import estimate
from pogdiff_cli.engine.network import Network
from pogdiff_cli.engine.trainer import Trainer
from pogdiff_cli.engine.tuning import LORA_FILE, load_final, load_final_text, write_final
from pogdiff_cli.engine.world import Place, World
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.models.adapter import Adapter, FamilyOptions
from pogdiff_cli.models.families import open_backbone
from pogdiff_cli.project.config import TrainConfig
from pogdiff_cli.project.manifest import read_manifest, write_manifest

CPU = torch.device("cpu")
TEXT: dict[str, Any] = {"train_text_encoder": True, "text_encoder_rank": 2, "tuning": "lora", "rank": 2}
SLOW = ("sd", "sd3")  # as the others, in their halves of the code
FAMILIES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SAVE if name != "sd-v"]
SHORT = {"sd3": 16, "flux": 16}


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(folder: Path, name: str, length: int | None = None) -> Adapter:
    return open_backbone(folder, device=CPU, options=FamilyOptions(max_token_length=length or SHORT.get(name)))


def awake(one: Trainer) -> Trainer:
    """LoRA's B is zero at the start, and nothing depends on A: some numbers in its place."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in one.network.of_text.values():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return one


def gradient(one: Trainer) -> dict[str, Tensor]:
    one.optimizer.zero_grad()
    one.objective(one.predict, batch_of(one)).value.backward()
    return {key: p.grad.clone() for key, p in one.network.of_text.items() if p.grad is not None}


def test_texts_read_in_the_step_are_those_that_were_cached(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    cached = trainer(opened(folders(name), name), tmp_path / "cached")
    inside = trainer(opened(folders(name), name), tmp_path / "inside", **TEXT | {"tuning": "full"})
    assert loss_of(inside) == pytest.approx(loss_of(cached), rel=1e-5)
    gradients = gradient(inside)
    assert gradients.keys() == inside.network.of_text.keys()  # nothing is trained in vain
    assert all((float(g.abs().max()) > 0) == ("lora_B" in key) for key, g in gradients.items())
    before = loss_of(inside)
    assert abs(loss_of(awake(inside)) - before) > 1e-4 * before


@pytest.mark.parametrize("method", ["pogdiff", "cbdm", "t2h", "vanilla"])
def test_the_gradient_of_a_text_encoder_is_the_slope_of_the_loss(
    method: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    keys = TEXT | {"method": method, "caption_dropout": 0.0, "cbdm_gamma": 0.0}
    one = awake(trainer(opened(folders("sdxl"), "sdxl"), tmp_path, **keys))
    if method == "cbdm":  # what its authors hold fixed is no part of the slope
        one.objective = type(one.objective)(tau=0.0)  # type: ignore[call-arg]
    found = gradient(one)
    assert slope(one, found) == pytest.approx(float(sum(g.square().sum() for g in found.values()) ** 0.5), rel=2e-2)


def slope(one: Trainer, along: dict[str, Tensor], step: float = 2e-2) -> float:
    """(L(w + s g/|g|) - L(w - s g/|g|)) / 2s."""
    size = float(sum(g.square().sum() for g in along.values()) ** 0.5)
    losses = []
    for sign in (1.0, -2.0):
        with torch.no_grad():
            for key, direction in along.items():
                one.network.of_text[key].add_(direction, alpha=sign * step / size)
        losses.append(loss_of(one))
    return (losses[0] - losses[1]) / (2 * step)


def test_the_neighbour_s_caption_is_taught_where_its_branch_has_a_gradient(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    keys = TEXT | {"caption_dropout": 0.0}
    both, stop, plain = (
        awake(trainer(opened(folders("sd"), "sd"), tmp_path / str(i), **keys | change))
        for i, change in enumerate(({"neighbour_grad": "both"}, {"neighbour_grad": "stop"}, {"method": "vanilla"}))
    )
    batch = batch_of(both)
    assert batch.neighbour is not None
    assert loss_of(both) == pytest.approx(loss_of(stop), rel=1e-6)
    held = {name: tensor.clone() for name, tensor in gradient(stop).items()}
    whole = gradient(both)
    # the part through h' alone: psi |h' - sg(h)|^2 of the same rows
    both.optimizer.zero_grad()
    rows, psi = batch.neighbour_rows, batch.neighbour_psi
    assert rows is not None
    assert psi is not None
    with torch.no_grad():
        h = both.predict(batch.x_t, batch.t, dict(batch.condition))[rows]
    other = both.predict(batch.x_t[rows], batch.t[rows], dict(batch.neighbour))
    ((other - h).square().flatten(1).mean(1) * psi * batch.weight[rows]).sum().div(len(batch.x_t)).backward()
    through = {name: p.grad for name, p in both.network.of_text.items()}
    for key, value in whole.items():
        torch.testing.assert_close(value, held[key] + through[key], rtol=1e-3, atol=1e-6)
    assert any(float((value - held[key]).norm()) > 1e-3 * float(value.norm()) for key, value in whole.items())
    assert any(not torch.allclose(value, held[key], rtol=1e-3) for key, value in gradient(plain).items())


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_resumed_run_ends_in_the_same_bits(tuning: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    keys = TEXT | {"tuning": tuning, "use_ema": True, "checkpointing_steps": 2, "text_encoder_lr": 1e-2}
    whole = trainer(opened(folders("sdxl"), "sdxl"), tmp_path, **keys)
    start = {key: p.detach().clone() for key, p in whole.network.of_text.items()}
    whole.run()
    resumed = trainer(opened(folders("sdxl"), "sdxl"), tmp_path, **keys, resume_from_checkpoint="checkpoint-000002")
    assert resumed.resume() == 2
    resumed.run()
    assert whole.ema is not None
    assert resumed.ema is not None
    assert all(torch.equal(p, resumed.trainable[key]) for key, p in whole.trainable.items())
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.shadow_params, resumed.ema.shadow_params, strict=True))
    assert all(not torch.equal(p, start[key]) for key, p in whole.network.of_text.items())


def test_text_encoders_have_a_learning_rate_of_their_own(folders: Callable[[str], Path], tmp_path: Path) -> None:
    one = trainer(
        opened(folders("sd"), "sd"), tmp_path, **TEXT, learning_rate=1e-4, text_encoder_lr=1e-2, adam_weight_decay=0.0
    )
    start = {key: p.detach().clone() for key, p in one.trainable.items()}
    one.optimise(one.batches[0])
    moved = {key: float((p.detach() - start[key]).abs().max()) for key, p in one.trainable.items() if "lora_B" in key}
    # AdamW's first step has the length of its learning rate
    rates = {key: 1e-2 if key in one.network.of_text else 1e-4 for key in moved}
    assert moved == {key: pytest.approx(rate, rel=1e-2) for key, rate in rates.items()}


def test_micro_batches_cut_for_memory_teach_the_same(folders: Callable[[str], Path], tmp_path: Path) -> None:
    whole, cut = (awake(trainer(opened(folders("sd"), "sd"), tmp_path / str(i), **TEXT)) for i in range(2))
    cut.pieces = 2
    for one in (whole, cut):
        one.optimise(one.batches[0])
    for key, value in whole.network.of_text.items():
        state, theirs = (one.optimizer.state[one.network.of_text[key]]["exp_avg"] for one in (whole, cut))
        torch.testing.assert_close(state, theirs, rtol=1e-3, atol=1e-8)
        assert value.shape == state.shape


# the command line

SETTINGS = ("train.train_text_encoder=true", "train.text_encoder_rank=2", "train.text_encoder_lr=0.01")


def test_the_command_line_trains_a_text_encoder(project: TinyProject) -> None:
    one = project.configure(*SETTINGS, "train.tuning=lora", "train.rank=2", "train.max_train_steps=1")
    outcome = one("train", "--method", "vanilla", "--name", "a")
    assert outcome.status == 0, outcome.err
    layers = load_file(one.root / "runs" / "a" / "final" / LORA_FILE)
    assert {key.split(".")[0] for key in layers} == {"unet", "text_encoder"}


@pytest.mark.slow
def test_the_road_with_a_trained_text_encoder(project: TinyProject) -> None:
    one = project.configure(*SETTINGS, "train.tuning=lora", "train.rank=2", "sample.images_per_identity=1")
    measured = ("--set", "train.validation_steps=3", "--set", "train.validation_loss_steps=3")
    outcome = one("train", "--name", "a", *measured)
    assert outcome.status == 0, outcome.err
    drawn = [
        np.asarray(Image.open(one.root / "runs" / "a" / "validation" / f"step-{step:06d}" / "000.png"), dtype=float)
        for step in (3, 6)
    ]
    assert np.abs(drawn[0] - drawn[1]).max() > 0
    layers = load_file(one.root / "runs" / "a" / "final" / LORA_FILE)
    taught = [value for key, value in layers.items() if key.startswith("text_encoder.") and "lora_B" in key]
    assert taught
    assert all(float(value.abs().max()) > 0 for value in taught)
    outcome = one("sample", "--run", "a")
    assert outcome.status == 0, outcome.err
    # the pipeline of an export, which diffusers loads by itself, draws what `sample` has drawn
    assert one("export", one.root / "whole", "--run", "a").status == 0
    direct = one.configure(f"pretrained_model_name_or_path={one.root / 'whole'}", "train.train_text_encoder=false")
    expected = sampled(one.root, "a")
    shutil.rmtree(one.root / "runs" / "a" / "samples")
    shutil.rmtree(one.root / "runs" / "a" / "final")
    shutil.copytree(one.root / "whole", one.root / "runs" / "a" / "final")
    manifest = read_manifest(one.root / "manifest.yaml")  # which would tell that the run did not write this
    manifest.runs["a"]["train"].outputs.clear()
    write_manifest(one.root / "manifest.yaml", manifest)
    assert direct("sample", "--run", "a").status == 0
    assert np.abs(sampled(one.root, "a") - expected).max() <= 1
    rehearsed = one("train", "--name", "b", "--dry-run", "--json")
    assert rehearsed.status == 0, rehearsed.err


def sampled(root: Path, run: str) -> np.ndarray:
    files = sorted((root / "runs" / run / "samples").rglob("0*.png"))
    assert files
    return np.stack([np.asarray(Image.open(file), dtype=float) for file in files])


def test_sharded_weights_and_a_trained_text_encoder_are_refused(
    folders: Callable[[str], Path],
) -> None:
    adapter = opened(folders("sd"), "sd")
    train = TrainConfig(**TEXT, parallel="fsdp")
    with pytest.raises(PogdiffError, match="train_text_encoder does not go with") as refusal:
        Network(adapter, train, World(Place(rank=0, size=2, local_rank=0)), seed=0)
    assert "ddp" in (refusal.value.hint or "")


# what is kept


def kept(folder: Path, base: Path, name: str, **keys: Any) -> tuple[Adapter, Path, np.ndarray]:
    """A short run, its final folder, and an image of what it has trained."""
    one = trainer(opened(base, name), folder / "run", **TEXT | {"learning_rate": 3e-2} | keys)
    one.run()
    (folder / "final").mkdir()
    denoiser = one.final_denoiser()
    assert denoiser is not None
    tuning = one.train.tuning
    expected = image(one.adapter, one.adapter.pipeline(denoiser, scheduler="native"))
    write_final(one.adapter, denoiser, folder / "final", tuning, one.network.encoders)
    return opened(base, name), folder / "final", expected


def far(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max())


def test_sampling_and_diffusers_read_the_encoder_s_lora(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter, final, expected = kept(tmp_path, folders(name), name)
    layers = load_file(final / LORA_FILE)
    parts = {key.split(".", 1)[0] for key in layers}
    assert parts == {adapter.denoiser_name, *adapter.clip_encoders}
    assert all(".text_model.encoder.layers." in key for key in layers if key.startswith("text_encoder"))
    denoiser = load_final(adapter, final)
    frozen = image(adapter, adapter.pipeline(denoiser, scheduler="native"))
    adapter.use_text_encoders(load_final_text(adapter, final))
    assert far(image(adapter, adapter.pipeline(denoiser, scheduler="native")), expected) < 1e-5
    assert far(frozen, expected) > 1e-3
    pipeline = load(adapter, folders(name))
    pipeline.load_lora_weights(final)
    adapter.use_text_encoders({part: getattr(pipeline, part) for part in adapter.clip_encoders})
    assert far(image(adapter, pipeline), expected) < 1e-4


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_diffusers_folder_holds_the_encoders_with_their_lora_added(
    tuning: str, name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    keys = {"tuning": tuning, "learning_rate": 3e-2 if tuning == "lora" else 3e-3, "text_encoder_lr": 3e-2}
    adapter, final, expected = kept(tmp_path, folders(name), name, **keys)
    base = final if tuning == "full" else folders(name)
    exports.write_pipeline(opened(base, name), final, tmp_path / "out")
    loaded = opened(tmp_path / "out", name)
    assert far(image(loaded, load(adapter, tmp_path / "out")), expected) < 1e-4
    names = set(load_file(tmp_path / "out" / "text_encoder" / "model.safetensors"))
    assert names == set(load_file(folders(name) / "text_encoder" / "model.safetensors"))


@pytest.mark.parametrize("name", [pytest.param("sd", marks=pytest.mark.slow), "sdxl"], indirect=False)
def test_one_file_and_kohya_s_keys_hold_the_encoders(name: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    adapter, final, expected = kept(tmp_path, folders(name), name)
    exports.write_single_file(adapter, folders(name), final, tmp_path / "one.safetensors", "float32")
    cls = diffusers.StableDiffusionXLPipeline if name == "sdxl" else diffusers.StableDiffusionPipeline
    one = cls.from_single_file(tmp_path / "one.safetensors", config=str(folders(name)), local_files_only=True)
    exports.write_kohya(adapter, folders(name), final, tmp_path / "lora.safetensors")
    keys = {key.split("_text_model")[0] for key in load_file(tmp_path / "lora.safetensors") if "lora_te" in key}
    assert keys == ({"lora_te"} if name == "sd" else {"lora_te1", "lora_te2"})
    two = load(adapter, folders(name))
    two.load_lora_weights(tmp_path / "lora.safetensors")
    for pipeline in (one, two):
        adapter.use_text_encoders({part: getattr(pipeline, part) for part in adapter.clip_encoders})
        assert far(image(adapter, pipeline), expected) < 1e-4


def test_peft_reads_the_encoders_folders(folders: Callable[[str], Path], tmp_path: Path) -> None:
    adapter, final, _ = kept(tmp_path, folders("sdxl"), "sdxl")
    exports.write_peft(adapter, final, tmp_path / "out")
    ours = load_final_text(adapter, final)
    for part, encoder in ours.items():
        theirs: Any = PeftModel.from_pretrained(adapter.load_part(part), str(tmp_path / "out" / part))
        merged = theirs.merge_and_unload().state_dict()
        expected = exports.merged_text(encoder)
        assert merged.keys() == expected.keys()
        assert max(float((merged[key] - value).abs().max()) for key, value in expected.items()) < 1e-6


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_estimate_counts_the_encoders_that_stay(
    tuning: Any, name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    one = trainer(opened(folders(name), name), tmp_path, **TEXT | {"tuning": tuning}, max_train_steps=1)
    train = TrainConfig(**TEXT | {"tuning": tuning, "mixed_precision": "no"})
    known = estimate(folders(name), train, device=CPU)
    networks = [one.denoiser, *one.network.encoders.values()]
    assert known.trainable == sum(p.numel() for p in one.trainable.values())
    held = 4 * sum(p.numel() for network in networks for p in network.parameters())
    held += 4 * sum(b.numel() for b in one.denoiser.buffers() if b.is_floating_point())  # positions, not trained
    assert known.training == held + 3 * 4 * known.trainable
