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
from pogdiff_cli.engine.tuning import write_final
from pogdiff_cli.models.families import open_backbone
from pogdiff_cli.project.config import TrainConfig

CPU = torch.device("cpu")


def tensors(folder: Path) -> int:
    """Bytes of the safetensors files of a folder, but for their headers."""
    from safetensors.torch import load_file

    return sum(v.numel() * v.element_size() for path in folder.rglob("*.safetensors") for v in load_file(path).values())


LORA: dict[str, Any] = {"tuning": "lora", "rank": 2}


@pytest.mark.parametrize(
    "keys",
    [{}, {"use_ema": True}, LORA | {"mixed_precision": "no"}, LORA | {"mixed_precision": "bf16"}],
    ids=["full", "ema", "lora", "lora-half"],
)
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
    weights = [*one.denoiser.parameters(), *one.denoiser.buffers()]
    held = sum(p.numel() * p.element_size() for p in weights) + state + 4 * known.trainable
    average = sum(p.numel() * 4 for p in one.ema.shadow_params) if one.ema else 0
    assert known.training == pytest.approx(held + average, rel=0.01)
    write_final(adapter, one.final_denoiser(), tmp_path / "final", keys.get("tuning", "full"))
    assert tensors(tmp_path / "final") == pytest.approx(known.final, rel=0.01)


def published(folder: Path, source: Path, configurations: dict[str, dict[str, Any]]) -> Path:
    """A folder of configurations alone: those of a tiny pipeline, with the published ones of its networks."""
    for path in source.rglob("*.json"):
        if not path.name.endswith("index.json") or path.name == "model_index.json":
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    for component, changes in configurations.items():
        path = folder / component / "config.json"
        known = json.loads(path.read_text())
        kept = ("_class_name", "_diffusers_version", "model_type", "architectures")
        path.write_text(json.dumps({key: known[key] for key in kept if key in known} | changes))
    return folder


CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_L |= {"vocab_size": 49408, "projection_dim": 768}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_G |= {"vocab_size": 49408, "projection_dim": 1280}
T5_XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}
T5_XXL |= {"feed_forward_proj": "gated-gelu", "is_encoder_decoder": False}
BLOCKS = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
VAE_4 = BLOCKS | {"latent_channels": 4}
VAE_16 = BLOCKS | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}

#: Configurations as published, where they differ from their classes' defaults.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "sd": {
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
        "text_encoder": CLIP_L,
        "vae": VAE_4,
    },
    "sdxl": {
        "unet": {
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
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
        "vae": VAE_4,
    },
    "sd3": {  # 3.5 medium: its first 13 blocks attend twice
        "transformer": {
            "sample_size": 128,
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": list(range(13)),
            "qk_norm": "rms_norm",
        },
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
        "text_encoder_3": T5_XXL,
        "vae": VAE_16,
    },
    "flux": {
        "transformer": {"guidance_embeds": True},
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
        "vae": VAE_16,
    },
}
#: Parameters of the published denoisers, and of what encodes beside them: VAE, CLIP-L, CLIP-G, T5-XXL.
DENOISERS = {"sd": 859_520_964, "sdxl": 2_567_463_684, "sd3": 2_243_171_520, "flux": 11_901_408_320}
ENCODERS = {
    "sd": 83_653_863 + 123_060_480,
    "sdxl": 83_653_863 + 123_060_480 + 694_659_840,
    "sd3": 83_819_683 + 123_650_304 + 694_659_840 + 4_762_310_656,  # its CLIP-L has a projection
    "flux": 83_819_683 + 123_060_480 + 4_762_310_656,
}
#: Bytes of the published weight files of denoisers in 16 bits: an oracle that no class of ours has counted.
FILES = {"sd": 1.72e9, "sdxl": 5.14e9, "sd3": 4.94e9, "flux": 23.8e9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_measured_without_their_weights(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = published(tmp_path / name, folders(name), PUBLISHED[name])
    known = estimate(folder, TrainConfig(), device=CPU)
    assert known.denoiser == pytest.approx(DENOISERS[name], rel=0.01)
    assert known.encoders == pytest.approx(ENCODERS[name], rel=0.01)
    positions = 384 * 384 * 1536 if name == "sd3" else 0  # which are saved, and not trained
    assert 2 * (known.denoiser + positions) == pytest.approx(FILES[name], rel=0.01)
    # weights, gradient and two moments, 4 bytes each
    assert known.training == 16 * known.denoiser + 4 * positions
    assert known.checkpoint == 12 * known.denoiser
    assert known.final == 4 * (known.denoiser + positions + known.encoders)
    assert known.encoding == 4 * known.encoders
    lora = estimate(folder, TrainConfig(tuning="lora", rank=16), device=CPU)
    assert lora.trainable < 0.01 * lora.denoiser
    # a base that is not trained is held in half precision
    assert lora.training < 1.1 * 2 * (lora.denoiser + positions)
    whole = estimate(folder, TrainConfig(tuning="lora", rank=16, mixed_precision="no"), device=CPU)
    assert 4 * (lora.denoiser + positions) < whole.training < 1.05 * 4 * (lora.denoiser + positions)
    assert lora.final == 4 * lora.trainable


def test_lora_takes_the_joint_attention_of_each_block_and_the_second_one_where_it_is_named(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Rank 16 on projections of width 1536: 8 a block, but for the text's output that the last block lacks."""
    folder = published(tmp_path / "sd3", folders("sd3"), PUBLISHED["sd3"])
    joint = estimate(folder, TrainConfig(tuning="lora", rank=16), device=CPU)
    assert joint.trainable == 16 * 2 * 1536 * (24 * 8 - 1)
    second = TrainConfig(tuning="lora", rank=16, lora_targets=("attn2.to_q", "attn2.to_out.0"))
    assert estimate(folder, second, device=CPU).trainable == 16 * 2 * 1536 * 13 * 2


def test_doctor_estimates_a_model_whose_weights_are_not_there(
    project: TinyProject, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = published(tmp_path / "sd", folders("sd"), PUBLISHED["sd"])
    outcome = project("doctor", "--set", f"pretrained_model_name_or_path={folder}", "--json")
    checks = {check["name"]: check for check in json.loads(outcome.out)["checks"]}
    assert checks["model"]["state"] == "missing"
    assert "859.5 M parameters" in checks["memory"]["detail"]
    assert "12.81 GiB" in checks["memory"]["detail"]
