"""What is trained: the whole denoiser, or LoRA on its attention; and how the result is written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pogdiff_cli.engine.text_tuning import (
    load_text_encoders,
    merged_text,
    peft_settings,
    read_layers,
    read_metadata,
    text_lora,
)
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.models.foreign import read_from
from pogdiff_cli.project.config import TrainConfig

#: What ``train.mixed_precision`` names.
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
LORA_FILE = "pytorch_lora_weights.safetensors"
LORA_CONFIG = "adapter_config.json"


def base_dtype(train: TrainConfig, device: torch.device) -> torch.dtype:
    """Of the denoiser's weights: float32 where they are trained, else the precision in which they are computed."""
    return torch.float32 if train.tuning == "full" else half_dtype(train, device)


def half_dtype(train: TrainConfig, device: torch.device) -> torch.dtype:
    """Of weights that nobody trains: what ``train.mixed_precision`` names, where the device has it."""
    half = HALF.get(train.mixed_precision, torch.float32)
    return torch.float32 if half == torch.float16 and device.type == "cpu" else half


def prepare(denoiser: Any, train: TrainConfig, lora_targets: tuple[str, ...]) -> None:
    """Set up the denoiser for ``train.tuning``: what is trained requires a gradient.

    ``lora_targets``: the family's, where the configuration names none.
    """
    targets = lora_targets if train.lora_targets is None else train.lora_targets
    if train.tuning == "lora":
        denoiser.requires_grad_(False)
        _add_lora(denoiser, lora_config(train, targets))
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    else:
        denoiser.requires_grad_(True)
    if train.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()


def _add_lora(denoiser: Any, config: Any) -> None:
    try:
        denoiser.add_adapter(config)
    except ValueError as problem:
        raise PogdiffError(
            f"No module of the model matches train.lora_targets {sorted(config.target_modules)}.",
            hint="Leave train.lora_targets out (null): the family's attention projections.",
            exit_code=Exit.USAGE,
        ) from problem


def lora_config(train: TrainConfig, targets: tuple[str, ...]) -> Any:
    """Peft's configuration of ``train``'s LoRA keys; alpha defaults to the rank."""
    from peft import LoraConfig

    alpha = train.rank if train.lora_alpha is None else train.lora_alpha
    return LoraConfig(
        r=train.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=list(targets),
        init_lora_weights="gaussian",
        use_dora=train.use_dora,
    )


def write_final(
    adapter: Adapter,
    denoiser: Any,
    folder: Path,
    tuning: Literal["full", "lora"],
    encoders: Mapping[str, nn.Module] | None = None,
) -> None:
    """A diffusers pipeline folder for ``full``; for ``lora`` the weights as diffusers and peft read them.

    ``encoders``: text encoders with LoRA, if any. In a whole pipeline it is added to their weights.
    """
    text = encoders or {}
    if tuning == "full":
        adapter.save(denoiser, folder, {name: merged_text(encoder) for name, encoder in text.items()})
        return
    from peft import get_peft_model_state_dict

    config = peft_settings(denoiser)
    loras = {name: text_lora(encoder) for name, encoder in text.items()}
    layers = {adapter.denoiser_name: get_peft_model_state_dict(denoiser)}
    layers |= {name: lora.layers for name, lora in loras.items()}
    configs = {adapter.denoiser_name: config} | {name: lora.config for name, lora in loras.items()}
    adapter.save_lora(layers, folder, configs)
    _order_header(folder / LORA_FILE)
    (folder / LORA_CONFIG).write_text(peft_config_text(config), encoding="utf-8")


def peft_config_text(config: Mapping[str, Any]) -> str:
    """Peft's configuration as it writes it itself."""
    readable = {key: value for key, value in config.items() if _is_json(value)}
    return json.dumps(readable, indent=1, default=sorted)


def _order_header(path: Path) -> None:
    """Sort the metadata of a safetensors file: the library writes them in an order that differs each time."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def load_final(adapter: Adapter, folder: Path, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The fine-tuned denoiser of a run: its own weights, or the base, in ``dtype``, with the run's LoRA."""
    if (folder / "model_index.json").is_file():
        return adapter.load_denoiser(folder)
    if not (folder / LORA_FILE).is_file():
        raise PogdiffError(
            f"{folder} holds neither a pipeline nor {LORA_FILE}.", hint="Train the run anew.", exit_code=Exit.MISSING
        )
    denoiser: Any = adapter.load_denoiser(dtype=dtype)
    with read_from(folder, "LoRA", hint="Train the run anew."):
        # with its metadata alpha is what it was in training; without, it would be taken for the rank
        denoiser.load_lora_adapter(
            read_layers(folder / LORA_FILE), prefix=adapter.denoiser_name, metadata=read_metadata(folder / LORA_FILE)
        )
    return denoiser  # type: ignore[no-any-return]


def load_final_text(adapter: Adapter, folder: Path) -> dict[str, nn.Module]:
    """The text encoders of a run that trained LoRA on them beside a denoiser's; a whole pipeline has them inside."""
    return load_text_encoders(adapter, folder / LORA_FILE) if (folder / LORA_FILE).is_file() else {}


def _is_json(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, list, dict, type(None)))
