"""A trained run in the formats of others: merged weights, one file, LoRA keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pogdiff_cli.engine.tuning import LORA_FILE, load_final
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.models.original_names import original_text, original_unet, original_vae, unet_name
from pogdiff_cli.models.weights import read_json

Precision = Literal["float32", "float16", "bfloat16"]
_ONE_FILE = ("Stable Diffusion 1.x/2.x", "Stable Diffusion XL")


def merged(adapter: Adapter, final: Path) -> nn.Module:
    """The fine-tuned denoiser as plain weights: a LoRA is added to the base's."""
    denoiser: Any = load_final(adapter, final)
    if getattr(denoiser, "peft_config", None):
        denoiser.fuse_lora()
        denoiser.unload_lora()
    return denoiser.eval()  # type: ignore[no-any-return]


def write_pipeline(adapter: Adapter, final: Path, folder: Path) -> None:
    """A diffusers folder."""
    adapter.save(merged(adapter, final), folder)


def write_single_file(adapter: Adapter, base: Path, final: Path, file: Path, precision: Precision) -> None:
    """One safetensors file under the original authors' names."""
    if adapter.family not in _ONE_FILE:
        raise PogdiffError(
            f"The one-file format is written for {' and '.join(_ONE_FILE)}, not for {adapter.family}.",
            hint="Take --format diffusers.",
            exit_code=Exit.USAGE,
        )
    unet = merged(adapter, final)
    weights = original_unet(unet.state_dict(), read_json(base / "unet" / "config.json"))
    weights |= original_vae(_read(base / "vae"), read_json(base / "vae" / "config.json"))
    if adapter.family == "Stable Diffusion XL":
        weights |= original_text(_read(base / "text_encoder"), "clip", "conditioner.embedders.0.")
        weights |= original_text(_read(base / "text_encoder_2"), "open_clip", "conditioner.embedders.1.")
    else:
        # 1.x has OpenAI's encoder, 2.x OpenCLIP's; their activations tell them apart
        quick = read_json(base / "text_encoder" / "config.json").get("hidden_act", "quick_gelu") == "quick_gelu"
        weights |= original_text(_read(base / "text_encoder"), "clip" if quick else "open_clip", "cond_stage_model.")
    dtype = getattr(torch, precision)
    save_file({name: value.to(dtype).contiguous() for name, value in weights.items()}, file, metadata={"format": "pt"})


def write_peft(adapter: Adapter, final: Path, folder: Path) -> None:
    """``adapter_model.safetensors`` for peft, and the same layers as diffusers' loaders name them."""
    layers, config = read_lora(adapter, final)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    named = {f"base_model.model.{name}": value for name, value in layers.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / LORA_FILE).write_bytes((final / LORA_FILE).read_bytes())


def write_kohya(adapter: Adapter, base: Path, final: Path, file: Path) -> None:
    """One file with kohya's keys: ``lora_unet_X.lora_down.weight``, ``lora_up.weight`` and ``alpha``."""
    if adapter.family not in _ONE_FILE:
        raise PogdiffError(
            f"Kohya's keys are written for {' and '.join(_ONE_FILE)}, not for {adapter.family}.",
            hint="Take --format peft, which diffusers and ComfyUI read for this family.",
            exit_code=Exit.USAGE,
        )
    layers, config = read_lora(adapter, final)
    if config.get("use_dora"):
        raise PogdiffError(
            "Kohya's DoRA keys differ between programs.",
            hint="Take --format peft, or --format diffusers with the LoRA merged.",
            exit_code=Exit.USAGE,
        )
    unet = read_json(base / "unet" / "config.json")
    named: dict[str, Tensor] = {}
    for name, value in layers.items():
        module, _, end = name.rpartition(".lora_")
        if adapter.family == "Stable Diffusion XL":  # there kohya's scripts train the original UNet
            module = unet_name(module, unet)
        key = "lora_unet_" + module.replace(".", "_")
        named[f"{key}.lora_{'down' if end.startswith('A') else 'up'}.weight"] = value
        named[f"{key}.alpha"] = torch.tensor(float(config["lora_alpha"]))
    metadata = {"ss_network_dim": str(config["r"]), "ss_network_alpha": str(config["lora_alpha"])}
    save_file(named, file, metadata={"format": "pt", "ss_network_module": "networks.lora", **metadata})


def read_lora(adapter: Adapter, final: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The layers of a LoRA run, without the component's name, and peft's configuration."""
    if not (final / LORA_FILE).is_file():
        raise PogdiffError(
            "This run was fully fine-tuned: it has no LoRA.",
            hint="Take --format diffusers or single-file.",
            exit_code=Exit.USAGE,
        )
    with safe_open(final / LORA_FILE, framework="pt") as file:
        names = list(file.keys())
        layers = {name.removeprefix(f"{adapter.denoiser_name}."): file.get_tensor(name) for name in names}
    return layers, read_json(final / "adapter_config.json")


def _read(component: Path) -> dict[str, Tensor]:
    """Every weight of a component's safetensors files."""
    weights: dict[str, Tensor] = {}
    for path in sorted(component.glob("*.safetensors")):
        if ".fp16." in path.name or ".non_ema." in path.name:
            continue
        with safe_open(path, framework="pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    return weights
