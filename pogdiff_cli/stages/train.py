"""``pogdiff train``: one fine-tuning run, from cached latents and text embeddings to ``runs/NAME/final``."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import yaml

from pogdiff_cli.data.sampling import exposure
from pogdiff_cli.engine.batches import Batches
from pogdiff_cli.engine.checkpoint import damaged
from pogdiff_cli.engine.encode import encode_texts
from pogdiff_cli.engine.launch import restarts
from pogdiff_cli.engine.metrics_log import read_metrics
from pogdiff_cli.engine.objectives import make_objective
from pogdiff_cli.engine.terms import Outcome
from pogdiff_cli.engine.trainer import Places, Trainer
from pogdiff_cli.engine.tuning import write_final
from pogdiff_cli.engine.world import World
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.project.atomic import atomic_folder, sweep, write_text
from pogdiff_cli.project.config import Config
from pogdiff_cli.project.digests import digest_value
from pogdiff_cli.project.layout import Run
from pogdiff_cli.project.lineage import StagePlan, plan_train
from pogdiff_cli.stages import training_data, validation
from pogdiff_cli.stages.caption import caption_texts
from pogdiff_cli.stages.class_images import class_images, encode_class, prior_batches
from pogdiff_cli.stages.context import Attempt, Context, Made, Result, perform
from pogdiff_cli.stages.dataset import Dataset, load_dataset, refuse_untrainable
from pogdiff_cli.stages.inputs import caption_cache, input_digests, load_adapter, text_form
from pogdiff_cli.stages.preview import previewer


def run(context: Context, run: Run) -> Result:
    """Write ``runs/NAME/``: resolved configuration, metrics, checkpoints, final weights."""
    dataset = load_dataset(context)
    refuse_untrainable(dataset)
    plan = plan_train(context.project.config, run.name)
    inputs = input_digests(context, plan, dataset)
    fingerprint = _fingerprint(plan, inputs)
    return perform(
        context, plan, inputs, lambda attempt: _train(context, run, fingerprint, dataset, attempt), hands="all"
    )


def _train(context: Context, run: Run, fingerprint: str, dataset: Dataset, attempt: Attempt) -> Made:
    config, world = context.project.config, context.world
    if world.main:
        _make_room(context, run)
    adapter = load_adapter(context)
    captions = caption_texts(context, dataset)
    validated = validation.heldout_rows(context, dataset)
    latents = training_data.latents(context, adapter, dataset, np.concatenate([dataset.train_rows, validated]))
    classes = class_images(context, adapter)
    if classes is not None:
        encode_class(context, adapter, latents, classes)
    form = text_form(config)
    texts = caption_cache(context, form)
    everything = [*captions, *validation.prompts(context, dataset, validated), ""]
    everything += [] if classes is None else classes.prompts
    encode_texts(texts, adapter, everything, form=form, rank=world.rank, world=world.size, track=context.track)
    world.together()
    texts.refresh()
    if config.train.validation_steps is None:
        adapter.free_encoders()
    batches = training_data.batches(config, adapter, dataset, context, captions, latents, texts)
    if classes is not None:
        batches.prior = prior_batches(context, adapter, batches, classes)
    trainer = Trainer(
        adapter=adapter,
        objective=objective(config, adapter, world),
        batches=batches,
        train=config.train,
        places=_places(config, run),
        fingerprint=fingerprint,
        world=world,
    )
    resumed = trainer.resume()
    if world.main:
        _say_where(context, run, resumed, attempt)
        context.say(_batch_in_words(batches, world))
    measured = validation.validator(context, trainer, dataset, validated)
    outcome = trainer.run(
        track=context.track,
        label=f"Training {run.name}",
        at_step=[hook for hook in (measured, previewer(context, run, adapter, dataset)) if hook is not None],
    )
    for note in trainer.notes:
        context.say(note)
    denoiser = trainer.final_denoiser()
    if denoiser is None:  # not the main process
        return Made()
    with atomic_folder(run.final) as folder:
        write_final(adapter, denoiser, folder, config.train.tuning, trainer.network.encoders)
    return Made(facts=_facts(context, run, dataset, batches, outcome))


def _make_room(context: Context, run: Run) -> None:
    config = context.project.config
    anew = context.mode == "force" or config.train.resume_from_checkpoint == "none"
    if anew and restarts() == 0:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    for folder in (run.folder, run.checkpoints):
        sweep(folder)
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(run.folder / "config.resolved.yaml", resolved)


def _batch_in_words(batches: Batches, world: World) -> str:
    settings = batches.settings
    factors = [f"{settings.rows_per_micro_batch} a micro-batch"]
    factors += [f"{batches.micro_batches} micro-batches"] if batches.micro_batches > 1 else []
    factors += [f"{world.size} processes"] if world.size > 1 else []
    return f"Global batch {settings.global_batch}: {' x '.join(factors)}."


def objective(config: Config, adapter: Adapter, world: World) -> Any:
    """What the run minimises."""
    train = config.train
    sharded = train.parallel == "fsdp" and world.size > 1
    if sharded and config.data.resize == "bucket":
        raise PogdiffError(
            "train.parallel fsdp and data.resize bucket exclude each other: the processes would make different "
            "numbers of forwards.",
            hint="Set data.resize: crop, or train.parallel: ddp.",
            exit_code=Exit.USAGE,
        )
    return make_objective(
        train.method,
        neighbour_grad=train.neighbour_grad,
        tau=train.cbdm_tau,
        gamma=train.cbdm_gamma,
        num_train_timesteps=adapter.timesteps,
        transfer_temperature=train.t2h_temperature,
        target_of=adapter.target,
        forwards="always" if sharded else "as needed",
        preserving=adapter.variance_preserving,
    )


def _places(config: Config, run: Run) -> Places:
    board = run.folder / "tensorboard" if "tensorboard" in config.train.report_to else None
    return Places(checkpoints=run.checkpoints, metrics=run.metrics, tensorboard=board)


def _fingerprint(plan: StagePlan, inputs: dict[str, str]) -> str:
    """Settings under which a checkpoint may be gone on with. More steps may be added where the schedule allows it."""
    cut = ("train.train_batch_size", "train.gradient_accumulation_steps")  # the trainer asks for their product
    parameters = {key: value for key, value in plan.parameters.items() if key not in cut}
    if parameters.get("train.lr_scheduler") in ("constant", "constant_with_warmup"):
        parameters.pop("train.max_train_steps")
    return digest_value([parameters, inputs])


def _say_where(context: Context, run: Run, resumed: int, attempt: Attempt) -> None:
    if context.project.config.train.resume_from_checkpoint == "latest":
        for path in damaged(run.checkpoints):
            context.say(f"{path} is damaged and was passed over: its files are not those that were written.")
    if resumed:
        context.say(f"{run.name} goes on at step {resumed}.")
    elif attempt == "anew" and run.checkpoints.is_dir():
        context.say(f"{run.name} was trained with other settings before: it starts anew, and its old checkpoints go.")
        shutil.rmtree(run.checkpoints, ignore_errors=True)


def _facts(context: Context, run: Run, dataset: Dataset, batches: Batches, outcome: Outcome) -> dict[str, Any]:
    config = context.project.config
    train = config.train
    slots = np.arange(batches.settings.global_batch, dtype=np.int64)
    identity = batches.rows.identity
    names = dataset.records.identity_names
    seen = np.zeros(len(names), dtype=np.int64)
    for step in range(train.max_train_steps):
        seen += exposure(batches.sampler.rows(step, slots, len(slots)), identity, len(names))
    counts = {names[code]: int(count) for code, count in enumerate(seen) if count}
    write_text(run.folder / "exposure.json", json.dumps(counts, indent=1, ensure_ascii=False))
    lines = read_metrics(run.metrics)
    means = {
        key: round(float(np.mean([line[key] for line in lines if line.get(key) is not None])), 6)
        for key in ("denoise", "neighbour", "prior", "psi_above_one", "second_forward", "transfer_rate")
        if any(line.get(key) is not None for line in lines)
    }
    facts: dict[str, Any] = {
        "method": train.method,
        "sampling": train.sampling,
        "tuning": train.tuning,
        "steps": outcome.steps,
        "resumed_at": outcome.resumed_at,
        "global_batch": len(slots),
        "processes": context.world.size,
        "seconds_per_step": outcome.seconds_per_step,
        "skipped_steps": outcome.skipped_steps,
        "overrides": dict(context.overrides),
        "mean": means,
    }
    if outcome.pieces > 1:
        facts["micro_batches_cut_into"] = outcome.pieces
    if "neighbour" in means and means.get("denoise"):
        facts["neighbour_share"] = round(means["neighbour"] / (means["neighbour"] + means["denoise"]), 5)
    return facts
