"""Which folders of the caches the settings of today read; all others were made with settings of the past."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pogdiff_cli.engine.encode import latent_space, text_space
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.embeddings import embedding_space, open_extractor
from pogdiff_cli.stages.inputs import backbone_digest, caption_encoder_digest, text_form
from pogdiff_cli.stages.requirements import scoring_extractors
from pogdiff_cli.stages.road import for_run, run_names


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """Folders below ``artifacts/cache``. ``unknown``: of these kinds nobody can say, and why; all of them stay."""

    used: frozenset[str]
    unknown: dict[str, str]


def each_run(context: Context) -> Iterator[tuple[str, Context]]:
    """Every run that is declared or was made, with its settings as typed for it once and without them."""
    names = dict.fromkeys([*context.project.manifest().runs, *run_names(context.project)])
    kinds: tuple[Literal["keep", "ignore"], ...] = ("keep", "ignore")
    for name in names:
        for recorded in kinds:
            yield name, for_run(context, name, recorded=recorded)


def spaces(context: Context, there: set[str]) -> Spaces:
    """Those of ``there`` that are read by some run, or by the index."""
    used = set(_recorded(context))
    unknown: dict[str, str] = {}
    for _, one in each_run(context):
        try:
            used |= set(_of_model(one))
        except PogdiffError as problem:
            unknown |= dict.fromkeys(("latents", "text"), problem.message)
    if any(name.startswith("embeddings/") for name in there - used):
        try:
            used |= set(_of_extractors(context))
        except PogdiffError as problem:
            unknown["embeddings"] = problem.message
    return Spaces(used=frozenset(used), unknown=unknown)


def _of_model(context: Context) -> Iterator[str]:
    data = context.project.config.data
    vae = backbone_digest(context, "vae")
    yield latent_space(vae_digest=vae, resolution=data.resolution, resize=data.resize)
    encoder = caption_encoder_digest(context)
    yield text_space(encoder_digest=encoder)  # the text density's, whatever is trained
    yield text_space(encoder_digest=encoder, form=text_form(context.project.config))


def _recorded(context: Context) -> Iterator[str]:
    record = context.project.manifest().record("index")
    if record is None:
        return
    name, digest, looks = (record.facts.get(key) for key in ("extractor", "extractor_digest", "preprocessing"))
    if isinstance(name, str) and isinstance(digest, str) and isinstance(looks, dict):
        yield embedding_space(name, digest, looks)


def _of_extractors(context: Context) -> Iterator[str]:
    specs = {context.project.config.index.extractor}
    for _, one in each_run(context):
        specs |= {one.project.config.index.extractor, *scoring_extractors(one.project)}
    for spec in sorted(specs):
        extractor = open_extractor(context, spec)
        yield embedding_space(extractor.name, extractor.digest, extractor.preprocessing)
