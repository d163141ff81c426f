"""A LoRA's frozen base in half precision: what has which precision, what learns, and what is kept exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import SAVE
from PIL import Image
from torch import nn
from training import batch_of, loss_of, trainer

from pogdiff_cli.engine.estimate import estimate
from pogdiff_cli.engine.sampler import ImageRequest, SamplingSettings, generate
from pogdiff_cli.engine.trainer import Trainer
from pogdiff_cli.engine.tuning import base_dtype, load_final, write_final
from pogdiff_cli.models.adapter import Adapter, Guidance
from pogdiff_cli.models.families import open_backbone
from pogdiff_cli.project.config import TrainConfig

CPU = torch.device("cpu")
LORA: dict[str, Any] = {"tuning": "lora", "rank": 2, "mixed_precision": "bf16", "learning_rate": 3e-3}
SLOW = ("sd", "sd3")  # as the others, in their halves of the code
FAMILIES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SAVE if name != "sd-v"]


@pytest.fixture(params=FAMILIES)
def adapter(request: pytest.FixtureRequest, folders: Callable[[str], Path]) -> Adapter:
    return open_backbone(folders(request.param), device=CPU)


def base_of(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in denoiser.named_parameters() if "lora_" not in name}


def reached(one: Trainer) -> set[str]:
    """What the gradient of one batch reaches: LoRA's B, as A's gradient is zero where B is."""
    with one.autocast():
        one.objective(one.predict, batch_of(one)).value.backward()
    found = {name for name, p in one.trainable.items() if p.grad is not None and float(p.grad.abs().max()) > 0}
    one.optimizer.zero_grad(set_to_none=True)
    assert len(found) > 4
    assert all("lora_B" in name for name in found)
    return found


def test_the_base_is_half_and_what_is_trained_is_float32(adapter: Adapter, tmp_path: Path) -> None:
    one = trainer(adapter, tmp_path, **LORA, use_ema=True)
    assert {p.dtype for p in base_of(one.denoiser).values()} == {torch.bfloat16}
    assert {p.dtype for p in one.trainable.values()} == {torch.float32}
    start = {name: p.clone() for name, p in base_of(one.denoiser).items()}
    whole = trainer(adapter, tmp_path / "whole", **LORA | {"mixed_precision": "no"})
    assert reached(one) == reached(whole)
    one.run()
    assert one.ema is not None
    state = [v for entry in one.optimizer.state.values() for v in entry.values() if v.dim()]
    assert {tensor.dtype for tensor in [*state, *one.ema.shadow_params]} == {torch.float32}
    assert all(torch.equal(p, start[name]) for name, p in base_of(one.denoiser).items())
    assert loss_of(one) > 0


# the reference's own: normalising weights in float32, what they scale in half
@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_predictions_are_those_of_a_float32_base_rounded_to_half(adapter: Adapter, tmp_path: Path) -> None:
    half = trainer(adapter, tmp_path / "half", **LORA)
    batch = batch_of(half)
    rounded: Any = adapter.load_denoiser()
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    with torch.no_grad(), half.autocast():
        found = half.predict(batch.x_t, batch.t, dict(batch.condition))
        expected = adapter.predict(rounded, batch.x_t, batch.t, dict(batch.condition)).float()
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 2e-2
    with torch.no_grad():  # without the trainer's autocast, as a sampling pipeline calls it
        again = half.predict(batch.x_t, batch.t, dict(batch.condition))
    assert torch.equal(again, found)


@pytest.mark.parametrize("name", ["sd", pytest.param("flux", marks=pytest.mark.slow)])
def test_a_resumed_run_on_a_half_base_ends_in_the_same_bits(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    keys = {**LORA, "use_ema": True, "checkpointing_steps": 2}
    adapter = open_backbone(folders(name), device=CPU)
    whole = trainer(adapter, tmp_path / "whole", **keys)
    whole.run()
    resumed = trainer(adapter, tmp_path / "whole", **keys, resume_from_checkpoint="checkpoint-000002")
    assert resumed.resume() == 2
    resumed.run()
    assert whole.ema is not None
    assert resumed.ema is not None
    for ours, theirs in ((whole.trainable, resumed.trainable), (base_of(whole.denoiser), base_of(resumed.denoiser))):
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    pairs = zip(whole.ema.shadow_params, resumed.ema.shadow_params, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def picture(adapter: Adapter, denoiser: nn.Module, path: Path) -> np.ndarray:
    settings = SamplingSettings(
        seed=0,
        resolution=32,
        num_inference_steps=2,
        guidance=Guidance(guidance_scale=2.0),
        negative_prompt="",
        scheduler="native",
        batch_size=1,
    )
    generate(adapter, denoiser, [ImageRequest(prompt="Ada.", noise_key=0, seed=0, path=path)], settings)
    return np.asarray(Image.open(path), dtype=np.float64)


def test_a_half_base_draws_the_picture_of_the_whole_one(adapter: Adapter, tmp_path: Path) -> None:
    one = trainer(adapter, tmp_path, **LORA | {"learning_rate": 3e-2})
    one.run()
    final = one.final_denoiser()
    assert final is not None
    drawn = picture(adapter, final, tmp_path / "trained.png")
    (tmp_path / "final").mkdir()
    write_final(adapter, final, tmp_path / "final", "lora")
    again = load_final(adapter, tmp_path / "final", dtype=torch.bfloat16)
    assert {p.dtype for p in base_of(again).values()} == {torch.bfloat16}
    assert np.abs(picture(adapter, again, tmp_path / "again.png") - drawn).max() <= 3  # layouts of memory differ
    whole = load_final(adapter, tmp_path / "final")
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    assert np.abs(picture(adapter, whole, tmp_path / "whole.png") - drawn).mean() < 3


@pytest.mark.parametrize(
    ("tuning", "precision", "device", "expected"),
    [
        ("lora", "bf16", "cpu", torch.bfloat16),
        ("lora", "fp16", "cuda", torch.float16),
        ("lora", "no", "cuda", torch.float32),
        ("lora", "fp16", "cpu", torch.float32),  # sampled where there is no GPU
        ("full", "bf16", "cuda", torch.float32),
    ],
)
def test_only_weights_that_are_not_trained_are_half(
    tuning: Any, precision: Any, device: str, expected: torch.dtype, folders: Callable[[str], Path]
) -> None:
    train = TrainConfig(tuning=tuning, mixed_precision=precision, rank=2)
    assert base_dtype(train, torch.device(device)) == expected
    known = estimate(folders("sd"), train, device=torch.device(device))
    # gradient and two moments of what is trained; a LoRA's own weights come on top of the base's
    own = 4 * known.trainable if tuning == "lora" else 0
    assert known.training == known.denoiser * expected.itemsize + own + 12 * known.trainable
