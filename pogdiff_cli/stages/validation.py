"""Validation loss by frequency group: held-out images under their evaluation prompt, the same noise at every step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pogdiff_cli.engine.batches import Batches, DrawSettings, HostBatch, TrainingRows
from pogdiff_cli.engine.encode import text_key
from pogdiff_cli.engine.feed import on_device
from pogdiff_cli.engine.trainer import AtStep, Trainer
from pogdiff_cli.method import mean_square
from pogdiff_cli.stages.caption import read_names
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.dataset import Dataset, groups
from pogdiff_cli.stages.inputs import image_condition
from pogdiff_cli.stages.training_data import images_of

GROUPS = ("few", "medium", "many")
_DRAWS = 4  # noises and timesteps of each image
_STEP = 2**40  # no training step reaches it: these numbers are nobody else's


def heldout_rows(context: Context, dataset: Dataset) -> NDArray[np.int64]:
    """Rows whose loss is measured; none where ``train.validation_loss_steps`` is not set."""
    if context.project.config.train.validation_loss_steps is None:
        return np.zeros(0, dtype=np.int64)
    trained = dataset.train_counts()[dataset.records.identity] > 0
    rows = np.flatnonzero(dataset.records.heldout & trained)
    if not len(rows):
        context.say("No image of a trained identity is held out: there is no validation loss.")
    return rows


def prompts(context: Context, dataset: Dataset, rows: NDArray[np.int64]) -> list[str]:
    """The evaluation prompt of each row's identity."""
    if not len(rows):
        return []
    names, prompt = read_names(context), context.project.config.sample.prompt
    return [prompt.format(name=names[dataset.records.name_of(int(row))]) for row in rows]


def validator(context: Context, trainer: Trainer, dataset: Dataset, rows: NDArray[np.int64]) -> AtStep | None:
    """What to call after each step: ``validation_loss_few`` and so on, mean|h - target|^2 over a group's images."""
    every = context.project.config.train.validation_loss_steps
    if every is None or not len(rows):
        return None
    batches = _batches(context, trainer, dataset, rows)
    group = np.array([GROUPS.index(name) for name in groups(context, dataset)])[dataset.records.identity[rows]]

    def validate(step: int, denoiser: nn.Module) -> dict[str, float]:
        if step % every and step != trainer.train.max_train_steps:
            return {}
        denoiser.eval()
        sums = _sums(trainer, batches, group)
        denoiser.train()
        if trainer.world.size > 1:
            torch.distributed.all_reduce(sums)
        return {f"validation_loss_{name}": float(s / n) for name, (s, n) in zip(GROUPS, sums, strict=True) if n}

    return validate


class _InOrder:
    """Slot after slot the rows in order, round after round."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def rows(self, step: int, slots: NDArray[np.int64], global_batch: int) -> NDArray[np.int64]:
        del step, global_batch
        return slots % self._rows


@torch.no_grad()
def _sums(trainer: Trainer, batches: Batches, group: NDArray[np.int64]) -> Tensor:
    """Sum of losses and number of draws by group, (3, 2), of this process's share; on the host."""
    size = batches.settings.rows_per_micro_batch
    starts = range(0, _DRAWS * len(group), size)
    # a sharded model needs every process in every forward: all measure all, and the mean is the same
    mine = starts if trainer.train.parallel == "fsdp" else trainer.world.share(starts)
    sums = torch.zeros(len(GROUPS), 2, dtype=torch.float64)
    for start in mine:
        slots = np.arange(start, min(start + size, _DRAWS * len(group)), dtype=np.int64)
        for host in batches.draw(_STEP, slots):
            losses = _losses(trainer, host).double().cpu()
            of = torch.from_numpy(group[host.rows])
            sums.index_add_(0, of, torch.stack([losses, torch.ones_like(losses)], dim=1))
    return sums


def _losses(trainer: Trainer, host: HostBatch) -> Tensor:
    with trainer.autocast():
        batch = on_device(host, trainer.adapter, snr_gamma=None, layout=trainer.layout)
        return mean_square(trainer.predict(batch.x_t, batch.t, dict(batch.condition)), batch.target)


def _batches(context: Context, trainer: Trainer, dataset: Dataset, rows: NDArray[np.int64]) -> Batches:
    config, trained = context.project.config, trainer.batches
    size = config.train.train_batch_size
    settings: DrawSettings = trained.settings
    plain = {"method": "vanilla", "caption_dropout": 0.0, "global_batch": size, "rows_per_micro_batch": size}
    texts = trained.texts.locate(text_key(text) for text in prompts(context, dataset, rows))
    return Batches(
        rows=TrainingRows(
            latents=trained.latents.locate(images_of(dataset, rows).keys(flipped=False)),
            texts=texts,
            empty_text=trained.rows.empty_text,
            identity=dataset.records.identity[rows],
            loss_weight=np.ones(len(rows)),
            image_condition=image_condition(config, trainer.adapter, dataset, rows),
        ),
        settings=DrawSettings(**{**settings.__dict__, **plain}),
        sampler=_InOrder(len(rows)),  # type: ignore[arg-type]
        latents=trained.latents,
        texts=trained.texts,
        micro_batches=1,
    )
