"""``pogdiff caption``: a caption for each training image, under a generic name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from pogdiff_cli.data.captions import (
    Caption,
    CaptionRequest,
    ensure_name,
    file_captions,
    read_captions,
    write_captions,
)
from pogdiff_cli.data.names import NameReplacer, assign_names, words_of
from pogdiff_cli.data.wording import check_prompts, template_captions
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import write_text
from pogdiff_cli.project.lineage import plan_caption
from pogdiff_cli.project.yaml_reader import MAX_OWN_BYTES, read_yaml
from pogdiff_cli.project.yaml_writer import dump_yaml
from pogdiff_cli.stages.context import Context, Made, Result, perform
from pogdiff_cli.stages.dataset import Dataset, load_dataset
from pogdiff_cli.stages.describe import Described, describe
from pogdiff_cli.stages.inputs import input_digests, load_adapter

_FREE = ("template", "files")  # captioners that only compute


def run(context: Context) -> Result:
    """Write ``artifacts/captions.jsonl`` and ``artifacts/names.yaml``."""
    plan = plan_caption(context.project.config)
    dataset = load_dataset(context)
    inputs = input_digests(context, plan, dataset)
    # asked before the manifest is told of this attempt
    known = context.world.agreed(lambda: _known_names(context))
    return perform(
        context,
        plan,
        inputs,
        lambda attempt: _caption(context, dataset, known),
        hands="all",
        # or the next attempt would take them for names given before
        clear=lambda: None if known else context.project.names.unlink(missing_ok=True),
    )


def read_names(context: Context) -> dict[str, str]:
    """Identity to the name it has in captions and prompts."""
    values = read_yaml(context.project.names, at_most=MAX_OWN_BYTES).values
    if values is not None and not isinstance(values, dict):
        raise PogdiffError(
            f"{context.project.names} is no list of identities with their names.",
            hint="Type 'pogdiff doctor --repair': captions and samples tell the names that were given.",
            exit_code=Exit.DATA,
        )
    return {str(identity): str(name) for identity, name in (values or {}).items()}


def _caption(context: Context, dataset: Dataset, known: Mapping[str, str]) -> Made:
    project, world = context.project, context.world
    names = _names(context, dataset, known)
    requests = _requests(dataset, names)
    free = project.config.caption.captioner in _FREE
    adapter = load_adapter(context) if world.main else None  # before anything is paid for
    described = None if free else describe(context, dataset, requests)
    if adapter is None:
        return Made()
    texts = _texts(context, dataset, requests) if described is None else _renamed(described, requests, names)
    count_tokens = lru_cache(maxsize=100_000)(adapter.count_tokens)  # an identity's captions share its name
    captions = [
        Caption(
            file_name=request.file_name,
            identity=request.identity,
            name=request.name,
            caption=ensure_name(text, request.name, count_tokens, adapter.token_limit),
            captioner=project.config.caption.captioner,
        )
        for request, text in context.track(zip(requests, texts, strict=True), "Writing captions", len(requests))
    ]
    write_captions(project.captions, captions)
    write_text(project.names, "# identity: the name it has in captions and prompts\n" + dump_yaml(names))
    return Made(facts=_facts(context, captions, described))


def _facts(context: Context, captions: Sequence[Caption], described: Described | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "captions": len(captions),
        "distinct": len({caption.caption for caption in captions}),
        "identities": len({caption.identity for caption in captions}),
        "captioner": context.project.config.caption.captioner,
        "reused": 0 if described is None else described.reused,
    }
    if described is not None:
        undescribed = sum(caption.caption == caption.name for caption in captions)
        facts["undescribed"] = undescribed
        if undescribed:
            context.say(f"{undescribed} pictures were not described: the name alone is their caption.")
    return facts


def _known_names(context: Context) -> dict[str, str]:
    """Names given before, the user's own changes included; none where ``caption.names`` now asks for another kind."""
    project = context.project
    record = project.manifest().record("caption")
    kind = project.config.caption.names
    changed = record is not None and record.parameters.get("caption.names", kind) != kind
    if changed or context.mode == "force" or not project.names.is_file():
        return {}
    return read_names(context)


def _names(context: Context, dataset: Dataset, known: Mapping[str, str]) -> dict[str, str]:
    config = context.project.config
    records = dataset.records
    taken = words_of([*records.texts, *records.identity_names])
    names = assign_names(records.identity_names, seed=config.seed, taken=taken, mode=config.caption.names, known=known)
    return {identity: names[identity] for identity in records.identity_names}


def _requests(dataset: Dataset, names: Mapping[str, str]) -> list[CaptionRequest]:
    records, replaced = dataset.records, NameReplacer(names)
    return [
        CaptionRequest(
            file_name=records.file_names[row],
            identity=records.name_of(row),
            name=names[records.name_of(row)],
            text=replaced(records.texts[row]) if records.texts[row] else "",
            attributes={key: column[row] for key, column in records.attributes.items() if column[row]},
        )
        for row in dataset.train_rows
    ]


def _texts(context: Context, dataset: Dataset, requests: Sequence[CaptionRequest]) -> Iterable[str]:
    caption = context.project.config.caption
    if caption.captioner == "template":
        check_prompts(caption.prompts, set(dataset.records.attributes))
        return template_captions(caption.prompts, requests, seed=context.project.config.seed)
    return file_captions(requests)


def _renamed(described: Described, requests: Sequence[CaptionRequest], names: Mapping[str, str]) -> Iterator[str]:
    """Each answer under today's names: real ones are replaced, and so is another one that the captioner was told."""
    replaced = NameReplacer(names)
    for request, description in zip(requests, described.answers, strict=True):
        text = description.text
        if description.name and description.name != request.name:
            text = NameReplacer({description.name: request.name})(text)
        yield replaced(text)


def caption_texts(context: Context, dataset: Dataset) -> list[str]:
    """The caption of each training row, in order."""
    captions = read_captions(context.project.captions)
    return [captions[dataset.records.file_names[row]].caption for row in np.asarray(dataset.train_rows)]
