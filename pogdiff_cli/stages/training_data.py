"""What a training run draws from: cached latents and texts, and the training records in columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.data.pairs import Pairs
from pogdiff_cli.data.sampling import RecordSampler, loss_weights
from pogdiff_cli.engine.batches import Batches, DrawSettings, TrainingRows
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.engine.encode import Images, encode_latents, latent_cache, text_key
from pogdiff_cli.method import neighbour_weights
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.project.config import Config
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.dataset import Dataset
from pogdiff_cli.stages.density import inverse_density, read_log_density
from pogdiff_cli.stages.index import read_index
from pogdiff_cli.stages.inputs import backbone_digest, image_condition

Rows = NDArray[np.int64]


def latents(context: Context, adapter: Adapter, dataset: Dataset, wanted: Rows) -> TensorCache:
    """The cache of this VAE and image transform, with the moments of every image of ``wanted`` in it.

    Each process encodes its share of what is missing.
    """
    config, world = context.project.config, context.world
    data = config.data
    cache = latent_cache(
        context.project.cache,
        vae_digest=backbone_digest(context, "vae"),
        resolution=data.resolution,
        resize=data.resize,
    )
    if cache.damaged:
        context.say(f"{len(cache.damaged)} damaged cache files were set aside; their images are encoded again.")
    encode_latents(
        cache,
        adapter,
        images_of(dataset, wanted),
        resolution=data.resolution,
        resize=data.resize,
        flips=(False, True) if config.train.random_flip else (False,),
        rank=world.rank,
        world=world.size,
        track=context.track,
    )
    world.together()
    cache.refresh()
    return cache


def batches(
    config: Config,
    adapter: Adapter,
    dataset: Dataset,
    context: Context,
    captions: list[str],
    latents: TensorCache,
    texts: TensorCache,
) -> Batches:
    """Every micro-batch of this process as a function of its number. The caches hold all that the run needs."""
    train = config.train
    identity = dataset.records.identity[dataset.train_rows]
    return Batches(
        rows=rows(config, adapter, dataset, context, captions, latents, texts),
        settings=DrawSettings(
            method=train.method,
            seed=config.seed,
            global_batch=train.train_batch_size * train.gradient_accumulation_steps * context.world.size,
            rows_per_micro_batch=train.train_batch_size,
            timesteps=adapter.timesteps,
            caption_dropout=train.caption_dropout,
            noise_offset=train.noise_offset,
            a1=train.a1,
            a2=train.a2,
            psi_terms=train.psi_terms,
            roulette=train.roulette,
            cbdm_drop=train.cbdm_drop,
            cbdm_uniform=train.cbdm_uniform,
            times=adapter.times,
        ),
        sampler=RecordSampler(identity, train.sampling, config.seed),
        latents=latents,
        texts=texts,
        micro_batches=train.gradient_accumulation_steps,
        rank=context.world.rank,
        world=context.world.size,
    )


def rows(
    config: Config,
    adapter: Adapter,
    dataset: Dataset,
    context: Context,
    captions: list[str],
    latents: TensorCache,
    texts: TensorCache,
) -> TrainingRows:
    """The training records in columns, with the pairs and densities that the method needs."""
    project, train = context.project, config.train
    training = dataset.train_rows
    images = images_of(dataset, training)
    identity = dataset.records.identity[training]
    # equal captions have equal locations: these stand for the texts from here on
    at = texts.locate(text_key(caption) for caption in captions)
    pairs = inverse = log_density = None
    if train.method == "pogdiff":
        found = read_index(project, len(training))
        pairs = Pairs(
            rows=found.rows,
            similarities=found.similarities,
            weights=neighbour_weights(found.similarities),
            identity=identity,
            texts=at,
        )
        share = pairs.same_text_share()
        if share > 0.3:
            context.say(f"{share:.0%} of the neighbours have the very same caption: they teach nothing.")
        if "inv_density" in train.psi_terms:
            inverse = inverse_density(config, read_log_density(project, len(training)))
    if train.method == "t2h":
        log_density = read_log_density(project, len(training))
    return TrainingRows(
        latents=latents.locate(images.keys(flipped=False)),
        flipped=latents.locate(images.keys(flipped=True)) if train.random_flip else None,
        texts=at,
        empty_text=int(texts.locate([text_key("")])[0]),
        identity=identity,
        loss_weight=loss_weights(identity, train.loss_weight),
        pairs=pairs,
        inverse_density=inverse,
        log_density=log_density,
        image_condition=image_condition(config, adapter, dataset, training),
    )


def images_of(dataset: Dataset, wanted: Rows) -> Images:
    """Files, digests and sizes of some rows."""
    return Images(
        folder=dataset.images,
        file_names=[dataset.records.file_names[row] for row in wanted],
        sha256=dataset.keys(wanted),
        sizes=dataset.sizes[wanted],
    )
