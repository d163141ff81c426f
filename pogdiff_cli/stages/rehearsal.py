"""``pogdiff train --dry-run``: real steps and one real image, to tell what the run would take; nothing stays."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pogdiff_cli.data.captions import read_captions
from pogdiff_cli.engine.batches import HostBatch
from pogdiff_cli.engine.encode import encode_texts
from pogdiff_cli.engine.memory import forget_peak, memory_explained, peak
from pogdiff_cli.engine.sampler import ImageRequest, generate
from pogdiff_cli.engine.trainer import Places, Trainer
from pogdiff_cli.engine.world import World
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.method import neighbour_weights, psi, roulette_probability
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.project.config import Config
from pogdiff_cli.project.integrity import refuse_damaged
from pogdiff_cli.project.layout import Project
from pogdiff_cli.stages import training_data
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.dataset import Dataset, load_dataset, refuse_untrainable
from pogdiff_cli.stages.density import inverse_density, read_log_density
from pogdiff_cli.stages.footprint import Disk, Encoded, disk_needed
from pogdiff_cli.stages.index import read_index
from pogdiff_cli.stages.inputs import caption_cache, load_adapter, text_form
from pogdiff_cli.stages.preview import sampling_settings
from pogdiff_cli.stages.train import objective

_STAND_IN = "Robin Example"  # where no name has been given to anyone yet
_PATIENCE = 10.0  # seconds for measured steps beyond the first
_AT_MOST = 5
_SAMPLE = 100_000  # rows of an index that the roulette's share is averaged over


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a run would take, on one of its processes. ``peak_bytes``: training; ``image_peak_bytes``: one image."""

    device: str
    memory_bytes: int
    processes: int
    rows_per_micro_batch: int
    micro_batches: int
    global_batch: int
    pieces: int  # into which micro-batches had to be cut
    steps: int
    peak_bytes: int
    image_peak_bytes: int
    seconds_per_step: float  # every row with its neighbour
    second_forward: float | None  # expected share of rows that need one; None where nothing is known of it
    seconds: float  # for all steps, with that share
    seconds_per_image: float
    disk: Disk

    def to_json(self) -> dict[str, Any]:
        """All of it, and the sum of what is written."""
        return {**asdict(self), "disk": {**asdict(self.disk), "total": self.disk.total}}


@contextmanager
def elsewhere(context: Context) -> Iterator[Context]:
    """The context with a temporary folder in place of ``artifacts/``: what it writes is gone afterwards."""
    project = context.project
    with tempfile.TemporaryDirectory(prefix="pogdiff-") as folder:
        scratch = replace(project, scratch=Path(folder))
        scratch.cache.mkdir()
        for name in ("scan.jsonl", "digests.json"):  # what is known of files need not be found out again
            with suppress(FileNotFoundError):
                shutil.copyfile(project.cache / name, scratch.cache / name)
        yield replace(context, project=scratch)


def rehearse(context: Context) -> Rehearsal:
    """Take steps and draw an image with the run's own settings; ``context`` comes from ``elsewhere``."""
    context = replace(context, world=World())  # one process, whoever else there is
    train = context.project.config.train
    dataset = load_dataset(context)
    refuse_untrainable(dataset)
    device = context.devices.own
    forget_peak(device)
    with memory_explained(train):
        adapter = load_adapter(context)
        captions = _captions(context, dataset)
        group, encoded = _worst_step(context, adapter, _few(dataset, train.train_batch_size), captions)
        if train.validation_steps is None:
            adapter.free_encoders()
        trainer = _trainer(context, adapter)
        seconds = _timed(lambda: trainer.optimise(group), device)
        share = _second_forward(context)
        plain = (
            seconds if train.roulette is None or not share else _timed(lambda: trainer.optimise(_alone(group)), device)
        )
        training = peak(device)
        forget_peak(device)
        image = context.project.artifacts / "image.png"
        started = time.monotonic()
        _draw(context, adapter, trainer, captions[0], image)
        drawn = time.monotonic() - started
        drawing = peak(device)
    return Rehearsal(
        device=context.devices.used[0].name,
        memory_bytes=context.devices.used[0].memory_bytes,
        processes=context.processes,
        rows_per_micro_batch=train.train_batch_size,
        micro_batches=train.gradient_accumulation_steps,
        global_batch=train.train_batch_size * train.gradient_accumulation_steps * context.processes,
        pieces=trainer.pieces,
        steps=train.max_train_steps,
        peak_bytes=training,
        image_peak_bytes=drawing,
        seconds_per_step=round(seconds, 5),
        second_forward=share,
        seconds=round(train.max_train_steps * (plain + (1.0 if share is None else share) * (seconds - plain)), 3),
        seconds_per_image=round(drawn, 3),
        disk=disk_needed(context, adapter, trainer, dataset, encoded, image=image.stat().st_size),
    )


def _captions(context: Context, dataset: Dataset) -> list[str]:
    """A text for each training row: its caption, the metadata's text, or the prompt with a stand-in name."""
    known = read_captions(replace(context.project, scratch=None).captions)
    records, prompt = dataset.records, context.project.config.sample.prompt.format(name=_STAND_IN)
    files = [(records.file_names[row], records.texts[row]) for row in dataset.train_rows]
    return [known[name].caption if name in known else text or prompt for name, text in files]


def _few(dataset: Dataset, count: int) -> Dataset:
    """The dataset of its first training rows alone."""
    rows = dataset.train_rows[: max(count, 2)]
    picked: dict[str, Any] = {"records": dataset.records.select(rows)}
    for field in fields(dataset):
        column = getattr(dataset, field.name)
        if isinstance(column, list):
            picked[field.name] = [column[row] for row in rows]
        elif isinstance(column, np.ndarray):
            picked[field.name] = column[rows]
    return replace(dataset, **picked)


def _worst_step(
    context: Context, adapter: Adapter, few: Dataset, captions: list[str]
) -> tuple[list[HostBatch], Encoded]:
    """The batches of one step, through the road of a run, and what was encoded for them."""
    config = context.project.config
    form = text_form(config)
    texts = caption_cache(context, form)
    latents = training_data.latents(context, adapter, few, few.train_rows)
    captions = captions[: len(few.train_rows)]
    encode_texts(texts, adapter, [*captions, ""], form=form)
    encoded = Encoded(latents=latents.folder, texts=texts.folder, images=len(few.train_rows), captions=captions)
    if config.train.method == "t2h":
        context.project.density.mkdir(parents=True)
        np.save(context.project.density / "log_density.npy", np.zeros(len(captions)), allow_pickle=False)
    batches = training_data.batches(_every_row_with_another(config), adapter, few, context, captions, latents, texts)
    group = [batch for micro in range(config.train.gradient_accumulation_steps) for batch in batches[micro]]
    # class images take what rows without a neighbour take
    prior = [replace(batch, kind="prior", facts={}) for batch in _alone(group)] if config.train.preserves_prior else []
    return group + prior, encoded


def _every_row_with_another(config: Config) -> Config:
    """Settings that draw another record's caption for every row without asking an index: those of cbdm."""
    if config.train.method in ("vanilla", "t2h"):
        return config
    train = config.train.model_copy(update={"method": "cbdm", "cbdm_drop": 0.0})
    return config.model_copy(update={"train": train})


def _alone(group: list[HostBatch]) -> list[HostBatch]:
    """The same rows without a neighbour."""
    return [
        replace(b, neighbour=None, neighbour_rows=b.neighbour_rows[:0], neighbour_psi=b.neighbour_psi[:0])
        for b in group
    ]


class _Nothing:
    """In place of draws: the steps that are rehearsed are handed to the trainer one by one."""

    def __init__(self, config: Config) -> None:
        self.settings = config


def _trainer(context: Context, adapter: Adapter) -> Trainer:
    config, folder = context.project.config, context.project.artifacts
    nothing: Any = _Nothing(config)
    return Trainer(
        adapter=adapter,
        objective=objective(config, adapter, context.world),
        batches=nothing,
        train=config.train,
        places=Places(checkpoints=folder / "checkpoints", metrics=folder / "metrics.jsonl", tensorboard=None),
        fingerprint="",
    )


def _timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one step: the first warms up and makes the optimizer's state; then the median of some."""
    taken: list[float] = []
    for number in range(1 + _AT_MOST):
        started = time.monotonic()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            taken.append(time.monotonic() - started)
        if sum(taken) > _PATIENCE:
            break
    return statistics.median(taken)


def _second_forward(context: Context) -> float | None:
    """Expected share of rows whose neighbour is evaluated; None where roulette has an index still to come."""
    config, train = context.project.config, context.project.config.train
    if train.method != "pogdiff":
        return 1.0 if train.method == "cbdm" else 0.0
    if train.roulette is None:
        return 1.0
    with suppress(PogdiffError, OSError, ValueError):
        return _roulette_share(replace(context.project, scratch=None), config, load_dataset(context))
    return None


def _roulette_share(project: Project, config: Config, dataset: Dataset) -> float:
    """E[min(1, psi / c)] over rows and their neighbours, of rows that keep their caption."""
    train = config.train
    rows = dataset.train_rows
    read = (project.index, project.density)
    refuse_damaged(project, [path.relative_to(project.root).as_posix() for path in read])  # it would be made again
    found = read_index(project, len(rows))
    identity = dataset.records.identity[rows]
    some: NDArray[np.int64] = np.arange(0, len(rows), -(-len(rows) // _SAMPLE))
    similarity = np.asarray(found.similarities[some])
    same = identity[np.asarray(found.rows[some])] == identity[some][:, None]
    density = np.ones(len(rows))
    if "inv_density" in train.psi_terms:
        density = inverse_density(config, read_log_density(project, len(rows)))
    values = psi(similarity, same, density[some][:, None], a1=train.a1, a2=train.a2, terms=train.psi_terms)
    accepted = roulette_probability(values, float(train.roulette or 1.0))
    share = float((neighbour_weights(similarity) * accepted).sum(axis=1).mean())
    return round(share * (1.0 - train.caption_dropout), 5)


def _draw(context: Context, adapter: Adapter, trainer: Trainer, prompt: str, path: Path) -> None:
    request = ImageRequest(prompt=prompt, noise_key=0, seed=0, path=path)
    generate(adapter, trainer.denoiser, [request], sampling_settings(context))
