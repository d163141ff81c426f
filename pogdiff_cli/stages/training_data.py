"""What a training run draws from: cached latents and texts, and the training records in columns."""

from __future__ import annotations

from pogdiff_cli.data.pairs import Pairs
from pogdiff_cli.data.sampling import RecordSampler, loss_weights
from pogdiff_cli.engine.batches import Batches, DrawSettings, TrainingRows
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.engine.encode import encode_latents, latent_cache, latent_key
from pogdiff_cli.method import neighbour_weights
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.project.config import Config
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.dataset import Dataset
from pogdiff_cli.stages.density import inverse_density, read_log_density
from pogdiff_cli.stages.index import read_index
from pogdiff_cli.stages.inputs import backbone_digest


def latents(context: Context, adapter: Adapter, dataset: Dataset) -> TensorCache:
    """The cache of this VAE and image transform, with the moments of every training image in it."""
    config = context.project.config
    data = config.data
    cache = latent_cache(
        context.project.cache,
        vae_digest=backbone_digest(context, "vae"),
        resolution=data.resolution,
        resize=data.resize,
    )
    if cache.damaged:
        context.say(f"{len(cache.damaged)} damaged cache files are left out; their images are encoded again.")
    training = dataset.train_rows
    flips = (False, True) if config.train.random_flip else (False,)
    images = {
        latent_key(key, flipped=flip): path
        for flip in flips
        for key, path in zip(dataset.keys(training), dataset.paths(training), strict=True)
    }
    encode_latents(cache, adapter, images, resolution=data.resolution, resize=data.resize, track=context.track)
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
    """Every micro-batch of the run as a function of its number."""
    train = config.train
    identity = dataset.records.identity[dataset.train_rows]
    return Batches(
        rows=rows(config, dataset, context, captions),
        settings=DrawSettings(
            method=train.method,
            seed=config.seed,
            global_batch=train.train_batch_size * train.gradient_accumulation_steps * context.world.size,
            rows_per_micro_batch=train.train_batch_size,
            timesteps=adapter.timesteps,
            caption_dropout=train.caption_dropout,
            random_flip=train.random_flip,
            noise_offset=train.noise_offset,
            a1=train.a1,
            a2=train.a2,
            psi_terms=train.psi_terms,
            roulette=train.roulette,
            cbdm_drop=train.cbdm_drop,
            cbdm_uniform=train.cbdm_uniform,
        ),
        sampler=RecordSampler(identity, train.sampling, config.seed),
        latents=latents,
        texts=texts,
        micro_batches=train.gradient_accumulation_steps,
        first_slot=context.world.rank * train.train_batch_size * train.gradient_accumulation_steps,
    )


def rows(config: Config, dataset: Dataset, context: Context, captions: list[str]) -> TrainingRows:
    """The training records in columns, with the pairs and densities that the method needs."""
    project, train = context.project, config.train
    training = dataset.train_rows
    identity = dataset.records.identity[training]
    pairs = inverse = log_density = None
    if train.method == "pogdiff":
        found = read_index(project, len(training))
        pairs = Pairs(
            rows=found.rows,
            similarities=found.similarities,
            weights=neighbour_weights(found.similarities),
            identity=identity,
            texts=captions,
        )
        share = pairs.same_text_share()
        if share > 0.3:
            context.say(f"{share:.0%} of the neighbours have the very same caption: they teach nothing.")
        if "inv_density" in train.psi_terms:
            inverse = inverse_density(config, read_log_density(project, len(training)))
    if train.method == "t2h":
        log_density = read_log_density(project, len(training))
    return TrainingRows(
        image_keys=dataset.keys(training),
        captions=captions,
        identity=identity,
        loss_weight=loss_weights(identity, train.loss_weight),
        pairs=pairs,
        inverse_density=inverse,
        log_density=log_density,
    )
