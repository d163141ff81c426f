"""How much a training run and its samples write, from what has been encoded and drawn of them in a rehearsal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pogdiff_cli.engine.checkpoint import flatten_optimizer
from pogdiff_cli.engine.trainer import Trainer
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.dataset import Dataset
from pogdiff_cli.stages.inputs import backbone_folder

_SMALL = (".json", ".txt", ".model")  # of a pipeline folder: what is copied beside the weights


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Where some images and captions have been encoded to."""

    latents: Path
    texts: Path
    images: int
    captions: list[str]


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that a run writes at most, what exists already included; ``free``: those that the disk has."""

    caches: int
    checkpoint: int  # one of them
    checkpoints: int  # all that are kept, and the one that is being saved
    final: int
    samples: int
    free: int

    @property
    def total(self) -> int:
        """All at once."""
        return self.caches + self.checkpoints + self.final + self.samples


def disk_needed(
    context: Context, adapter: Adapter, trainer: Trainer, dataset: Dataset, encoded: Encoded, *, image: int
) -> Disk:
    """Caches for all rows, checkpoints, final weights, and the samples of every identity (``image``: bytes of one)."""
    config = context.project.config
    train, sample = config.train, config.sample
    one = _checkpoint(trainer)
    saved = -(-train.max_train_steps // train.checkpointing_steps)
    kept = saved if train.checkpoints_total_limit is None else min(saved, train.checkpoints_total_limit + 1)
    return Disk(
        caches=_caches(encoded, rows=len(dataset.train_rows)),
        checkpoint=one,
        checkpoints=one * kept,
        final=_final(context, adapter, trainer),
        samples=image * sample.images_per_identity * len(dataset.records.identity_names),
        free=shutil.disk_usage(context.project.root).free,
    )


def _caches(encoded: Encoded, *, rows: int) -> int:
    """In proportion to images and to texts; every row is taken to have a caption of its own."""
    texts = len({*encoded.captions, ""})
    return round(_bytes(encoded.latents) / encoded.images * rows + _bytes(encoded.texts) / texts * (rows + 1))


def _checkpoint(trainer: Trainer) -> int:
    trainable: Mapping[str, Tensor] = trainer.trainable
    parts = [trainable, flatten_optimizer(trainer.optimizer, list(trainable))]
    if trainer.ema is not None:
        parts.append(dict(zip(trainable, trainer.ema.shadow_params, strict=True)))
    return sum(_file(part) for part in parts)


def _final(context: Context, adapter: Adapter, trainer: Trainer) -> int:
    if context.project.config.train.tuning == "lora":
        return _file(trainer.trainable)
    components: dict[str, Any] = adapter.pipeline(trainer.denoiser, scheduler="native").components
    weights = sum(_file(part.state_dict()) for part in components.values() if isinstance(part, nn.Module))
    folder = backbone_folder(context)
    small = [path for path in folder.rglob("*") if path.suffix in _SMALL and path.is_file()]
    return weights + sum(
        path.stat().st_size for path in small if path.parent == folder or path.parent.name in components
    )


def _file(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of a safetensors file: its header, and the tensors."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    header = {name: {"dtype": "F32", "shape": [*t.shape], "data_offsets": [0, total]} for name, t in tensors.items()}
    return 8 + len(json.dumps(header, separators=(",", ":"))) + total


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
