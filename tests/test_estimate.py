"""What doctor says a run needs, held against networks that are really made, and against published sizes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyProject
from families import SAVE
from training import trainer

from pogdiff_cli.engine.estimate import estimate
from pogdiff_cli.models.families import open_backbone
from pogdiff_cli.project.config import TrainConfig

CPU = torch.device("cpu")


def tensors(folder: Path) -> int:
    """Bytes of the safetensors files of a folder, but for their headers."""
    from safetensors.torch import load_file

    return sum(v.numel() * v.element_size() for path in folder.rglob("*.safetensors") for v in load_file(path).values())


@pytest.mark.parametrize("keys", [{}, {"use_ema": True}, {"tuning": "lora", "rank": 2}], ids=["full", "ema", "lora"])
@pytest.mark.parametrize("name", [name for name in SAVE if name != "sd-v"])
def test_sizes_are_those_of_a_run(
    name: str, keys: dict[str, Any], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    known = estimate(folders(name), TrainConfig(**keys), device=CPU)
    adapter = open_backbone(folders(name), device=CPU)
    one = trainer(adapter, tmp_path, max_train_steps=1, train_batch_size=2, **keys)
    assert known.denoiser == sum(p.numel() for p in adapter.load_denoiser().parameters())
    assert known.trainable == sum(p.numel() for p in one.trainable.values())
    one.run()
    (checkpoint,) = (path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert tensors(checkpoint) == pytest.approx(known.checkpoint, rel=0.01)  # and a step count for each tensor
    state = sum(v.numel() * 4 for entry in one.optimizer.state.values() for v in entry.values() if v.numel() > 1)
    held = sum(p.numel() * 4 for p in one.denoiser.parameters()) + state + 4 * known.trainable
    average = sum(p.numel() * 4 for p in one.ema.shadow_params) if one.ema else 0
    assert known.training == pytest.approx(held + average, rel=0.01)


def published(folder: Path, source: Path, component: str, changes: dict[str, Any]) -> Path:
    """A folder of configurations alone, with the published ones of the denoiser."""
    for path in source.rglob("*.json"):
        if not path.name.endswith("index.json") or path.name == "model_index.json":
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    known = json.loads((folder / component / "config.json").read_text())
    kept = {key: known[key] for key in ("_class_name", "_diffusers_version")}
    (folder / component / "config.json").write_text(json.dumps(kept | changes))
    return folder


#: The denoisers' published configurations, where they differ from their classes' defaults, and their sizes in M.
PUBLISHED: dict[str, tuple[str, dict[str, Any], float]] = {
    "sd": ("unet", {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}, 859.5),
    "sdxl": (
        "unet",
        {
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        2567.5,
    ),
    "flux": ("transformer", {"guidance_embeds": True}, 11901.4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_measured_without_their_weights(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    component, changes, millions = PUBLISHED[name]
    folder = published(tmp_path / name, folders(name), component, changes)
    known = estimate(folder, TrainConfig(), device=CPU)
    assert known.denoiser / 1e6 == pytest.approx(millions, rel=1e-3)
    assert known.training == 16 * known.denoiser  # weights, gradient and two moments, 4 bytes each
    lora = estimate(folder, TrainConfig(tuning="lora", rank=16), device=CPU)
    assert lora.trainable < 0.01 * lora.denoiser
    assert lora.training < 1.05 * 4 * lora.denoiser


def test_doctor_estimates_a_model_whose_weights_are_not_there(
    project: TinyProject, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = published(tmp_path / "sd", folders("sd"), *PUBLISHED["sd"][:2])
    outcome = project("doctor", "--set", f"pretrained_model_name_or_path={folder}", "--json")
    checks = {check["name"]: check for check in json.loads(outcome.out)["checks"]}
    assert checks["model"]["state"] == "missing"
    assert "859.5 M parameters" in checks["memory"]["detail"]
    assert "12.81 GiB" in checks["memory"]["detail"]
