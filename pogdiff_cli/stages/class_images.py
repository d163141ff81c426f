"""Images of the class, for prior preservation: the user's, or drawn by the base before training and kept."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pogdiff_cli.data.images import IMAGE_SUFFIXES, decode
from pogdiff_cli.engine.batches import Batches, TrainingRows
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.engine.encode import Images, encode_latents, text_key
from pogdiff_cli.engine.prior import PriorBatches, PriorSampler, prior_settings
from pogdiff_cli.engine.sampler import ImageRequest, SamplingSettings, batches, encode_prompts, generate, missing
from pogdiff_cli.engine.tuning import half_dtype
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.adapter import Adapter, Guidance
from pogdiff_cli.project.digests import digest_bytes, digest_value
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.inputs import backbone_digest, condition_of_sizes

_STEPS = 50  # as the pipelines' own default, whatever the run's samples take
_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class ClassImages:
    """Images of the class in columns, and the prompt of each."""

    images: Images
    prompts: list[str]


def class_images(context: Context, adapter: Adapter) -> ClassImages | None:
    """Those of the configuration, all there; None where no prior is preserved."""
    train = context.project.config.train
    own = train.class_images
    if own is not None and not train.class_prompts:
        raise PogdiffError(
            "train.class_images need train.class_prompts that say what they show.",
            hint='Add train.class_prompts: ["a photo of a person"], say; or take train.class_images out.',
            exit_code=Exit.USAGE,
        )
    if not train.preserves_prior:
        return None
    folder = _folder(context, adapter) if own is None else context.project.root / own
    paths = _drawn(context, adapter, folder) if own is None else _found(folder)
    sizes = np.array([decode(path).image.size for path in paths], dtype=np.int64)
    return ClassImages(
        images=Images(
            folder=folder,
            file_names=[path.relative_to(folder).as_posix() for path in paths],
            sha256=[digest_bytes(path).removeprefix("sha256:") for path in paths],
            sizes=sizes,
        ),
        prompts=[train.class_prompts[i % len(train.class_prompts)] for i in range(len(paths))],
    )


def _found(folder: Path) -> list[Path]:
    """The user's, in the order of their names."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise PogdiffError(
            f"train.class_images: there is no image in {folder}.",
            hint="Name a folder of images, or null: the base model draws them.",
            exit_code=Exit.DATA,
        )
    return paths


def _folder(context: Context, adapter: Adapter) -> Path:
    """Where images that are drawn in this way lie: by the weights and all settings that decide them."""
    settings, dtype = _settings(context), half_dtype(context.project.config.train, adapter.device)
    made_by = [backbone_digest(context), asdict(replace(settings, batch_size=0)), str(dtype)]
    return context.project.cache / "class" / digest_value(made_by).removeprefix("sha256:")[:16]


def _drawn(context: Context, adapter: Adapter, folder: Path) -> list[Path]:
    """What the base draws for the class prompts; only what is missing is drawn, by all processes together."""
    train, world = context.project.config.train, context.world
    settings = _settings(context)
    prompts = [train.class_prompts[i % len(train.class_prompts)] for i in range(train.num_class_images)]
    requests = [_request(folder, prompt, i) for i, prompt in enumerate(prompts)]
    todo = missing(requests)
    world.together()  # all have looked before anyone writes
    mine = [request for batch in world.share(batches(requests, _BATCH, todo)) for request in batch]
    if mine:
        encoded = encode_prompts(adapter, prompts, settings, track=context.track)
        generate(
            adapter,
            adapter.load_denoiser(dtype=half_dtype(train, adapter.device)),
            mine,
            settings,
            prompts=encoded,
            keep={request.path for request in requests} - {request.path for request in todo},
            track=context.track,
            label="Drawing class images",
        )
        if adapter.device.type == "cuda":
            torch.cuda.empty_cache()
    world.together()
    return [request.path for request in requests]


def _request(folder: Path, prompt: str, number: int) -> ImageRequest:
    key = hashlib.sha256(prompt.encode()).hexdigest()
    return ImageRequest(
        prompt=prompt,
        noise_key=int(key[:8], 16),
        seed=number,
        path=folder / key[:16] / f"{number:05d}.png",
        stamp=digest_value([folder.name, prompt, number]),
    )


def _settings(context: Context) -> SamplingSettings:
    """The family's own guidance and scheduler: what ``sample`` does is another matter."""
    config = context.project.config
    return SamplingSettings(
        seed=config.seed,
        resolution=config.data.resolution,
        num_inference_steps=_STEPS,
        guidance=Guidance(),
        negative_prompt="",
        scheduler="native",
        batch_size=_BATCH,
    )


def encode_class(context: Context, adapter: Adapter, cache: TensorCache, classes: ClassImages) -> None:
    """Their latents go where those of the data are."""
    data, world = context.project.config.data, context.world
    encode_latents(
        cache,
        adapter,
        classes.images,
        resolution=data.resolution,
        resize=data.resize,
        rank=world.rank,
        world=world.size,
        track=context.track,
    )
    world.together()
    cache.refresh()


def prior_batches(context: Context, adapter: Adapter, main: Batches, classes: ClassImages) -> PriorBatches:
    """As many rows as ``main`` has in each micro-batch."""
    count = len(classes.prompts)
    nobody: NDArray[np.int32] = np.zeros(count, dtype=np.int32)
    sampler = PriorSampler(count=count, seed=main.settings.seed)
    return PriorBatches(
        rows=TrainingRows(
            latents=main.latents.locate(classes.images.keys(flipped=False)),
            texts=main.texts.locate(text_key(prompt) for prompt in classes.prompts),
            empty_text=main.rows.empty_text,
            identity=nobody,
            loss_weight=np.ones(count),
            image_condition=condition_of_sizes(context.project.config, adapter, classes.images.sizes),
        ),
        settings=prior_settings(main.settings),
        sampler=sampler,  # type: ignore[arg-type]
        latents=main.latents,
        texts=main.texts,
        micro_batches=main.micro_batches,
        rank=main.rank,
        world=main.world,
    )
