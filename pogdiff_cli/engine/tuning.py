"""What is trained: the whole denoiser, or LoRA on its attention; and how the result is written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from torch import nn

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.project.config import TrainConfig

LORA_FILE = "pytorch_lora_weights.safetensors"
_LORA_CONFIG = "adapter_config.json"


def prepare(denoiser: Any, train: TrainConfig) -> None:
    """Set up the denoiser for ``train.tuning``: what is trained requires a gradient."""
    if train.tuning == "lora":
        denoiser.requires_grad_(False)
        denoiser.add_adapter(lora_config(train))
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    else:
        denoiser.requires_grad_(True)
    if train.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    if not any(p.requires_grad for p in denoiser.parameters()):
        raise PogdiffError(
            f"No module of the model matches train.lora_targets {list(train.lora_targets)}.",
            hint="For Stable Diffusion: [to_q, to_k, to_v, to_out.0].",
            exit_code=Exit.USAGE,
        )


def lora_config(train: TrainConfig) -> Any:
    """Peft's configuration of ``train``'s LoRA keys; alpha defaults to the rank."""
    from peft import LoraConfig

    alpha = train.rank if train.lora_alpha is None else train.lora_alpha
    return LoraConfig(
        r=train.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=list(train.lora_targets),
        init_lora_weights="gaussian",
    )


def write_final(adapter: Adapter, denoiser: Any, folder: Path, tuning: Literal["full", "lora"]) -> None:
    """A diffusers pipeline folder for ``full``; for ``lora`` the weights as diffusers and peft read them."""
    if tuning == "full":
        adapter.save(denoiser, folder)
        return
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    config = denoiser.peft_config["default"].to_dict()
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser))
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=layers, safe_serialization=True, unet_lora_adapter_metadata=config
    )
    readable = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items() if _is_json(v)}
    (folder / _LORA_CONFIG).write_text(json.dumps(readable, indent=1, default=sorted), encoding="utf-8")


def load_final(adapter: Adapter, folder: Path) -> nn.Module:
    """The fine-tuned denoiser of a run: its own weights, or the base with the run's LoRA."""
    if (folder / "model_index.json").is_file():
        return adapter.load_denoiser()
    if not (folder / LORA_FILE).is_file():
        raise PogdiffError(
            f"{folder} holds neither a pipeline nor {LORA_FILE}.", hint="Train the run anew.", exit_code=Exit.MISSING
        )
    denoiser: Any = adapter.load_denoiser()
    denoiser.load_lora_adapter(load_file(folder / LORA_FILE), prefix="unet")
    return denoiser  # type: ignore[no-any-return]


def _is_json(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, list, dict, set, type(None)))
