"""What a run would need, from the configurations of a pipeline alone: no weights are read, none are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers

from pogdiff_cli.engine.text_tuning import add_text_lora
from pogdiff_cli.engine.tuning import base_dtype, prepare
from pogdiff_cli.models.backbone import Backbone
from pogdiff_cli.models.families import family_of
from pogdiff_cli.models.foreign import read_from
from pogdiff_cli.models.weights import component_classes, read_json
from pogdiff_cli.project.config import TrainConfig

_FLOAT = 4  # bytes
_HALF = 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Parameters and bytes. What activations take depends on the batch and comes on top of ``training``.

    ``training``: weights of the denoiser, a LoRA's base in half precision where ``train.mixed_precision`` is; gradient,
    two moments and perhaps the average of what is trained.
    ``encoding``: VAE and text encoders, which leave the device before training; those that are trained along stay, and
    are counted in ``training`` as well.
    ``checkpoint``: one of them. ``final``: the result on disk.
    """

    family: str
    denoiser: int
    trainable: int
    encoders: int
    training: int
    encoding: int
    checkpoint: int
    final: int


def estimate(folder: Path, train: TrainConfig, *, device: torch.device) -> Estimate:
    """Sizes of a local pipeline folder that needs to have its configurations only."""
    family = family_of(folder)
    denoiser = _on_meta(folder, family.denoiser_name, family.parts[family.denoiser_name])
    total = _count(denoiser)
    fixed = sum(buffer.numel() for buffer in denoiser.buffers())  # positions of Stable Diffusion 3: saved with weights
    prepare(denoiser, train, family.lora_targets)
    text = _trained_text(folder, family, train)
    trainable = sum(_count(network, "trained") for network in (denoiser, *text.values()))
    frozen = {
        name: _count(_on_meta(folder, name, family.parts[name]))
        for name in component_classes(folder)
        if name == "vae" or (name in family.parts and name.startswith("text_encoder"))
    }
    large = [name for name in frozen if family.parts[name] == "T5EncoderModel" and device.type == "cuda"]
    encoding = sum(count * (_HALF if name in large else _FLOAT) for name, count in frozen.items())
    weights = (total + fixed) * base_dtype(train, device).itemsize
    added = trainable if train.tuning == "lora" else trainable - total  # to networks that are there already
    weights += _FLOAT * (added + sum(frozen[name] for name in text))
    kept = 3 + (1 if train.use_ema else 0)
    return Estimate(
        family=family.family,
        denoiser=total,
        trainable=trainable,
        encoders=sum(frozen.values()),
        training=weights + _FLOAT * kept * trainable,
        encoding=encoding,
        checkpoint=_FLOAT * kept * trainable,
        final=_FLOAT * (trainable if train.tuning == "lora" else total + fixed + sum(frozen.values())),
    )


def _trained_text(folder: Path, family: type[Backbone], train: TrainConfig) -> dict[str, Any]:
    """The text encoders that stay for training, with their LoRA."""
    names = family.clip_encoders if train.train_text_encoder else ()
    encoders = {name: _on_meta(folder, name, family.parts[name]) for name in names}
    for name, encoder in encoders.items():
        add_text_lora(encoder, train, unread=family.unread_layers.get(name, 0))
    return encoders


def _on_meta(folder: Path, component: str, name: str) -> Any:
    """The component's network without memory behind its weights."""
    with read_from(folder, component), torch.device("meta"):
        if hasattr(diffusers, name):
            return getattr(diffusers, name).from_config(read_json(folder / component / "config.json"))
        config = transformers.AutoConfig.from_pretrained(folder / component, local_files_only=True)
        cls = getattr(transformers, name)
        if not isinstance(config, cls.config_class):  # published CLIP configurations may name the whole of CLIP
            config = cls.config_class.from_pretrained(folder / component, local_files_only=True)
        return cls(config)


def _count(model: Any, which: Literal["all", "trained"] = "all") -> int:
    return sum(parameter.numel() for parameter in model.parameters() if which == "all" or parameter.requires_grad)
