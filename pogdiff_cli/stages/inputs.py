"""What stages read: the pretrained model, found, digested and wrapped; and the digests of all else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.data.images import placements
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.engine.encode import Form, text_cache
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.models.adapter import Adapter, FamilyOptions
from pogdiff_cli.models.extractors.presence import files_of
from pogdiff_cli.models.weights import resolve_pipeline
from pogdiff_cli.project.config import Config
from pogdiff_cli.project.digests import digest_value
from pogdiff_cli.project.lineage import TEXT_PARTS, StagePlan
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.dataset import Dataset
from pogdiff_cli.stages.requirements import extractor_options

_WEIGHTS = (".safetensors", ".json", ".txt", ".model")


def backbone_folder(context: Context) -> Path:
    """Local folder of ``pretrained_model_name_or_path``; exit 4 where it is not on this machine."""
    return resolve_pipeline(context.project.config.pretrained_model_name_or_path, context.project.root)


def load_adapter(context: Context, folder: Path | None = None) -> Adapter:
    """The adapter of the backbone, or of another pipeline folder, on the first device."""
    from pogdiff_cli.models.families import open_backbone

    train = context.project.config.train
    options = FamilyOptions(
        max_token_length=train.max_token_length,
        timestep_sampling=train.timestep_sampling,
        logit_mean=train.logit_mean,
        logit_std=train.logit_std,
        guidance_scale=train.guidance_scale,
    )
    return open_backbone(folder or backbone_folder(context), device=context.devices.own, options=options)


def backbone_digest(context: Context, *components: str) -> str:
    """Digest of the pipeline's files, or of some of its components'."""
    return context.world.agreed(lambda: _backbone_digest(context, components))


def _backbone_digest(context: Context, components: tuple[str, ...]) -> str:
    folder = backbone_folder(context)
    digests = context.project.digests
    entries = [
        (path.relative_to(folder).as_posix(), digests.of(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in _WEIGHTS and _belongs(path.relative_to(folder), components)
    ]
    return digest_value(entries)


def input_digests(context: Context, plan: StagePlan, dataset: Dataset | None) -> dict[str, str]:
    """What a stage would read today: name to digest; ``missing`` where there is nothing."""
    return context.world.agreed(lambda: _input_digests(context, plan, dataset))


def _input_digests(context: Context, plan: StagePlan, dataset: Dataset | None) -> dict[str, str]:
    digests: dict[str, str] = {}
    for name, path in plan.inputs.items():
        if name == "model":
            digests[name] = backbone_digest(context, *plan.model_parts)
        elif name == "tokenizer":
            digests[name] = _tokenizer_digest(context, plan)
        elif path is None:
            digests[name] = "missing" if dataset is None else dataset.digest
        else:
            found = context.project.digests.of(context.project.root / path)
            if found is not None or name not in plan.optional:
                digests[name] = found or "missing"
    record = context.project.manifest().record(plan.key)
    known = {} if record is None else record.inputs
    for name, spec in plan.networks.items():
        digest = _network_digest(context, spec) or known.get(name)  # what was made does not need it any more
        if digest is not None:
            digests[name] = digest
    return digests


def _network_digest(context: Context, spec: str) -> str | None:
    """Of the files of a network beside the base; None of what has none, and where they are not here."""
    try:
        files = files_of(spec, extractor_options(context.project, spec))
    except PogdiffError:
        return None
    return digest_value([(path.name, context.project.digests.of(path)) for path in files]) if files else None


def _tokenizer_digest(context: Context, plan: StagePlan) -> str:
    """That of the record where the model is not here: captions that are made do not need it."""
    try:
        return backbone_digest(context, *plan.model_parts)
    except PogdiffError:
        record = context.project.manifest().record(plan.key)
        if record is None or "tokenizer" not in record.inputs:
            raise
        return record.inputs["tokenizer"]


def image_condition(
    config: Config, adapter: Adapter, dataset: Dataset, rows: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """What the family wants to know of each of these images beside its latents, row by row."""
    return condition_of_sizes(config, adapter, dataset.sizes[rows])


def condition_of_sizes(config: Config, adapter: Adapter, sizes: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """The same of images of these widths and heights, (n, 2)."""
    placed = placements(
        sizes, resolution=config.data.resolution, resize=config.data.resize, multiple=adapter.side_multiple
    )
    return adapter.image_condition(sizes[:, ::-1], placed.corner[:, ::-1], placed.size[:, ::-1])


def text_form(config: Config) -> Form:
    """As what texts are cached for training: an encoder that is trained reads their tokens anew in each step."""
    return "tokens" if config.train.train_text_encoder else "embeddings"


def caption_cache(context: Context, form: Form = "embeddings") -> TensorCache:
    """The cache of this backbone's text embeddings, or of its captions' tokens."""
    return text_cache(context.project.cache, encoder_digest=caption_encoder_digest(context), form=form)


def caption_encoder_digest(context: Context) -> str:
    """Of what decides how a text is embedded."""
    # the index says whether an empty prompt is read as zeros
    digest = backbone_digest(context, *TEXT_PARTS, "model_index.json")
    length = context.project.config.train.max_token_length
    return digest if length is None else digest_value([digest, length])


def _belongs(path: Path, components: tuple[str, ...]) -> bool:
    if components:
        return path.parts[0] in components
    return len(path.parts) > 1 or path.name == "model_index.json"
