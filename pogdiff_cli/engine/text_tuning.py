"""LoRA on a pipeline's CLIP text encoders: added, written as diffusers reads it, read back, merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.models.components import TEXT_MODEL
from pogdiff_cli.models.foreign import read_from
from pogdiff_cli.project.config import TrainConfig

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")  # diffusers' own scripts have these
_ANEW = "Train the run anew."
_METADATA = "lora_adapter_metadata"  # diffusers' name in the file's header
_ADAPTER = "default"


@dataclass(frozen=True, kw_only=True, eq=False)
class TextLora:
    """The layers of one encoder, under published names, and peft's configuration."""

    layers: dict[str, Tensor]
    config: dict[str, Any]


def trained_text_encoders(adapter: Adapter, train: TrainConfig) -> dict[str, nn.Module]:
    """Fresh encoders with LoRA, in evaluation mode, their own weights frozen; none where they are not trained."""
    if not train.train_text_encoder:
        return {}
    encoders = {name: adapter.load_part(name) for name in adapter.clip_encoders}
    for name, encoder in encoders.items():
        add_text_lora(encoder, train, unread=adapter.unread_layers.get(name, 0))
    return encoders


def add_text_lora(encoder: Any, train: TrainConfig, *, unread: int) -> None:
    """LoRA on the attention of all layers but the last ``unread`` ones; it alone requires a gradient."""
    from peft import LoraConfig

    encoder.requires_grad_(False)
    rank = train.text_encoder_rank
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights="gaussian")
    if unread:
        config.layers_to_transform = list(range(encoder.config.num_hidden_layers - unread))
        config.layers_pattern = "layers"
    encoder.add_adapter(config, adapter_name=_ADAPTER)
    encoder.eval()


def text_lora(encoder: Any) -> TextLora:
    """What is to be kept of an encoder's LoRA."""
    from peft import get_peft_model_state_dict

    # "auto" would ask the hub whether the vocabulary is the base's
    layers = get_peft_model_state_dict(encoder, adapter_name=_ADAPTER, save_embedding_layers=False)
    named = {TEXT_MODEL + name.removeprefix(TEXT_MODEL): value for name, value in layers.items()}
    return TextLora(layers=named, config=peft_settings(encoder))


def peft_settings(network: Any) -> dict[str, Any]:
    """Peft's configuration of a network's LoRA."""
    settings = network.peft_config[_ADAPTER].to_dict()
    # sorted: the order of a set differs from process to process, and with it the bits of the file
    return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


def load_text_encoders(adapter: Adapter, file: Path) -> dict[str, nn.Module]:
    """The base's encoders with the LoRA that ``file`` holds for them; none where it holds none."""
    layers = read_layers(file)
    found = {name: adapter.load_part(name) for name in adapter.clip_encoders if part_of(layers, name)}
    metadata = read_metadata(file)
    for name, encoder in found.items():
        config = None if metadata is None else part_of(metadata, name)
        _load(encoder, part_of(layers, name), config)
    return found


def _load(encoder: Any, layers: dict[str, Tensor], config: dict[str, Any] | None) -> None:
    from peft import LoraConfig, set_peft_model_state_dict

    assert config, "a LoRA of text encoders comes with its configuration"
    encoder.add_adapter(LoraConfig(**config), adapter_name=_ADAPTER)
    prefix = TEXT_MODEL if hasattr(encoder, "text_model") else ""
    named = {prefix + name.removeprefix(TEXT_MODEL): value for name, value in layers.items()}
    found = set_peft_model_state_dict(encoder, named, adapter_name=_ADAPTER)
    assert not found.unexpected_keys, found.unexpected_keys
    encoder.eval().requires_grad_(False)


def merged_text(encoder: nn.Module) -> dict[str, Tensor]:
    """An encoder's weights with its LoRA added: W + (alpha / r) B A."""
    from peft.tuners.lora import LoraLayer

    weights = {
        name.replace(".base_layer.", "."): value.detach().clone()
        for name, value in encoder.state_dict().items()
        if ".lora_" not in name
    }
    with torch.no_grad():
        for name, layer in encoder.named_modules():
            if isinstance(layer, LoraLayer):
                weights[f"{name}.weight"] += layer.get_delta_weight(_ADAPTER).to(weights[f"{name}.weight"].dtype)
    return weights


def read_layers(file: Path) -> dict[str, Tensor]:
    """Every tensor of a LoRA file, ``COMPONENT.LAYER``."""
    with read_from(file.parent, "LoRA", hint=_ANEW), safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)


def read_metadata(file: Path) -> dict[str, Any] | None:
    """Peft's configurations in a LoRA file's header, ``COMPONENT.KEY``."""
    with read_from(file.parent, "LoRA", hint=_ANEW), safe_open(file, framework="pt") as opened:
        found: dict[str, Any] | None = json.loads((opened.metadata() or {}).get(_METADATA, "null"))
    return found


def part_of(values: Mapping[str, Any], component: str) -> dict[str, Any]:
    """What belongs to one component, without its name."""
    return {k.removeprefix(f"{component}."): v for k, v in values.items() if k.startswith(f"{component}.")}
