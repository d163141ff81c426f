"""A trained run in the formats of others: merged weights, one file, LoRA keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pogdiff_cli.engine.text_tuning import merged_text, part_of, read_layers, text_lora
from pogdiff_cli.engine.tuning import LORA_CONFIG, LORA_FILE, load_final, load_final_text, peft_config_text
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.models.components import TEXT_MODEL, read_weights
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
    adapter.save(merged(adapter, final), folder, _merged_text(adapter, final))


def _merged_text(adapter: Adapter, final: Path) -> dict[str, dict[str, Tensor]]:
    """Weights of the text encoders that a LoRA changes, by component."""
    return {name: merged_text(encoder) for name, encoder in load_final_text(adapter, final).items()}


def _text_weights(adapter: Adapter, base: Path, final: Path) -> dict[str, dict[str, Tensor]]:
    """Weights of every CLIP encoder, by component."""
    return {name: read_weights(base / name) for name in adapter.clip_encoders} | _merged_text(adapter, final)


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
    text = _text_weights(adapter, base, final)
    weights |= original_vae(read_weights(base / "vae"), read_json(base / "vae" / "config.json"))
    if adapter.family == "Stable Diffusion XL":
        weights |= original_text(text["text_encoder"], "clip", "conditioner.embedders.0.")
        weights |= original_text(text["text_encoder_2"], "open_clip", "conditioner.embedders.1.")
    else:
        # 1.x has OpenAI's encoder, 2.x OpenCLIP's; their activations tell them apart
        quick = read_json(base / "text_encoder" / "config.json").get("hidden_act", "quick_gelu") == "quick_gelu"
        weights |= original_text(text["text_encoder"], "clip" if quick else "open_clip", "cond_stage_model.")
    dtype = getattr(torch, precision)
    save_file({name: value.to(dtype).contiguous() for name, value in weights.items()}, file, metadata={"format": "pt"})


def write_peft(adapter: Adapter, final: Path, folder: Path) -> None:
    """``adapter_model.safetensors`` for peft, and the same layers as diffusers' loaders name them.

    Text encoders that were trained along have folders of their own for peft.
    """
    layers, config = read_lora(adapter, final)
    _write_adapter(layers, json.dumps(config, indent=1), folder)
    for name, encoder in load_final_text(adapter, final).items():
        lora = text_lora(encoder)
        prefix = TEXT_MODEL if hasattr(encoder, "text_model") else ""  # peft asks for the class's own names
        of_class = {prefix + key.removeprefix(TEXT_MODEL): value for key, value in lora.layers.items()}
        _write_adapter(of_class, peft_config_text(lora.config), folder / name)
    (folder / LORA_FILE).write_bytes((final / LORA_FILE).read_bytes())


def _write_adapter(layers: dict[str, Tensor], config: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(config, encoding="utf-8")
    named = {f"base_model.model.{name}": value for name, value in layers.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def write_kohya(adapter: Adapter, base: Path, final: Path, file: Path) -> None:
    """One file with kohya's keys: ``lora_unet_X.lora_down.weight``, ``lora_up.weight`` and ``alpha``.

    Text encoders are ``lora_te_X``, those of Stable Diffusion XL ``lora_te1_X`` and ``lora_te2_X``.
    """
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
    original = adapter.family == "Stable Diffusion XL"  # there kohya's scripts train the original UNet
    translated = {_translated(name, unet) if original else name: value for name, value in layers.items()}
    named = _kohya("lora_unet_", translated, config["lora_alpha"])
    for number, encoder in enumerate(load_final_text(adapter, final).values(), start=1):
        lora = text_lora(encoder)
        named |= _kohya(f"lora_te{number if original else ''}_", lora.layers, lora.config["lora_alpha"])
    metadata = {"ss_network_dim": str(config["r"]), "ss_network_alpha": str(config["lora_alpha"])}
    save_file(named, file, metadata={"format": "pt", "ss_network_module": "networks.lora", **metadata})


def _translated(name: str, unet: dict[str, Any]) -> str:
    module, dot, end = name.rpartition(".lora_")
    return unet_name(module, unet) + dot + end


def _kohya(prefix: str, layers: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, value in layers.items():
        module, _, end = name.rpartition(".lora_")
        key = prefix + module.replace(".", "_")
        named[f"{key}.lora_{'down' if end.startswith('A') else 'up'}.weight"] = value
        named[f"{key}.alpha"] = torch.tensor(float(alpha))
    return named


def read_lora(adapter: Adapter, final: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The denoiser's layers of a LoRA run, without the component's name, and peft's configuration."""
    if not (final / LORA_FILE).is_file():
        raise PogdiffError(
            "This run was fully fine-tuned: it has no LoRA.",
            hint="Take --format diffusers or single-file.",
            exit_code=Exit.USAGE,
        )
    layers = part_of(read_layers(final / LORA_FILE), adapter.denoiser_name)
    return layers, read_json(final / LORA_CONFIG)
