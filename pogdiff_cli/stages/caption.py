"""``pogdiff caption``: a caption for each training image, under a generic name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pogdiff_cli.data.captions import (
    Caption,
    CaptionRequest,
    CaptionWriter,
    ensure_name,
    file_captions,
    read_captions,
)
from pogdiff_cli.data.images import decode
from pogdiff_cli.data.names import NameReplacer, assign_names, words_of
from pogdiff_cli.data.wording import check_prompts, template_captions
from pogdiff_cli.project.atomic import atomic_file, write_text
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.lineage import plan_caption
from pogdiff_cli.project.yaml_reader import MAX_OWN_BYTES, read_yaml
from pogdiff_cli.project.yaml_writer import dump_yaml
from pogdiff_cli.stages.context import Attempt, Context, Made, Result, perform
from pogdiff_cli.stages.dataset import Dataset, load_dataset
from pogdiff_cli.stages.inputs import input_digests, load_adapter

if TYPE_CHECKING:
    from pogdiff_cli.models.captioners import Captioner

_FREE = ("template", "files")  # captioners that only compute
_WRITTEN_AT_ONCE = 4096


def run(context: Context) -> Result:
    """Write ``artifacts/captions.jsonl`` and ``artifacts/names.yaml``."""
    plan = plan_caption(context.project.config)
    dataset = load_dataset(context)
    inputs = input_digests(context, plan, dataset)
    # asked before the manifest is told of this attempt
    known = context.world.agreed(lambda: _known_names(context))
    return perform(context, plan, inputs, lambda attempt: _caption(context, dataset, attempt, known), hands="all")


def read_names(context: Context) -> dict[str, str]:
    """Identity to the name it has in captions and prompts."""
    values = read_yaml(context.project.names, at_most=MAX_OWN_BYTES).values
    return {str(identity): str(name) for identity, name in (values or {}).items()}


def _caption(context: Context, dataset: Dataset, attempt: Attempt, known: Mapping[str, str]) -> Made:
    project, world = context.project, context.world
    captioner = project.config.caption.captioner
    if world.main:
        if attempt == "anew" or captioner in _FREE:  # these cost nothing, and names may have changed
            _forget(project, known)
        _take_in_parts(project)
    world.together()
    names = _names(context, dataset, known)
    requests = _requests(dataset, names)
    done = read_captions(project.captions)
    todo = [request for request in requests if request.file_name not in done]
    world.together()  # all have read before anyone writes
    if world.main or captioner not in _FREE:
        mine = todo if captioner in _FREE else world.share(todo)
        with CaptionWriter(project.captions if world.main else _part(project, world.rank)) as writer:
            for batch in _captions(context, dataset, mine, names):
                writer.append(batch)
    world.together()
    return _finish(context, requests, names, reused=len(done)) if world.main else Made()


def _finish(context: Context, requests: Sequence[CaptionRequest], names: Mapping[str, str], *, reused: int) -> Made:
    """One file in the records' order, however many processes wrote it; and the names."""
    project = context.project
    if context.world.size > 1:
        _take_in_parts(project)
        found = read_captions(project.captions)
        order = dict.fromkeys([*(request.file_name for request in requests if request.file_name in found), *found])
        with atomic_file(project.captions) as path, CaptionWriter(path) as writer:
            writer.append(found[file_name] for file_name in order)
    written = read_captions(project.captions).values()
    captions = [caption.caption for caption in written]
    write_text(project.names, "# identity: the name it has in captions and prompts\n" + dump_yaml(names))
    facts: dict[str, Any] = {
        "captions": len(captions),
        "distinct": len(set(captions)),
        "identities": len({request.identity for request in requests}),
        "captioner": project.config.caption.captioner,
        "reused": reused,
    }
    if project.config.caption.captioner not in _FREE:
        undescribed = sum(caption.caption == caption.name for caption in written)
        facts["undescribed"] = undescribed
        if undescribed:
            context.say(f"{undescribed} pictures were not described: the name alone is their caption.")
    return Made(facts=facts)


def _forget(project: Project, known: Mapping[str, str]) -> None:
    for path in (project.captions, *_parts(project), *([] if known else [project.names])):
        path.unlink(missing_ok=True)


def _part(project: Project, rank: int) -> Path:
    """Where a process that is not the main one writes its captions."""
    return project.captions.with_name(f"captions.part-{rank}.jsonl")


def _parts(project: Project) -> list[Path]:
    return sorted(project.captions.parent.glob("captions.part-*.jsonl"))


def _take_in_parts(project: Project) -> None:
    """Append what other processes wrote, in this attempt or in one that was killed."""
    for path in _parts(project):
        known = read_captions(project.captions)
        with CaptionWriter(project.captions) as writer:
            writer.append(c for name, c in read_captions(path).items() if name not in known)
        path.unlink()


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


def _captions(
    context: Context, dataset: Dataset, requests: Sequence[CaptionRequest], names: Mapping[str, str]
) -> Iterable[list[Caption]]:
    config = context.project.config
    adapter = load_adapter(context)
    count_tokens = lru_cache(maxsize=100_000)(adapter.count_tokens)  # an identity's captions share its name
    # what costs nothing is not worth a flush to the disk every few images
    size = _WRITTEN_AT_ONCE if config.caption.captioner in _FREE else _batch_size(context)
    texts = _texts(context, dataset, requests, names)
    batches = range(0, len(requests), size)
    for start in context.track(batches, "Captioning", len(batches)):
        batch = requests[start : start + size]
        yield [
            Caption(
                file_name=request.file_name,
                identity=request.identity,
                name=request.name,
                caption=ensure_name(next(texts), request.name, count_tokens, adapter.token_limit),
                captioner=config.caption.captioner,
            )
            for request in batch
        ]


def _texts(
    context: Context, dataset: Dataset, requests: Sequence[CaptionRequest], names: Mapping[str, str]
) -> Iterator[str]:
    caption = context.project.config.caption
    if caption.captioner == "template":
        check_prompts(caption.prompts, set(dataset.records.attributes))
        return iter(template_captions(caption.prompts, requests, seed=context.project.config.seed))
    if caption.captioner == "files":
        return iter(file_captions(requests))
    return _described(context, dataset, requests, names)


def _described(
    context: Context, dataset: Dataset, requests: Sequence[CaptionRequest], names: Mapping[str, str]
) -> Iterator[str]:
    if not requests:
        return
    captioner = _open_captioner(context)
    replaced = NameReplacer(names)  # of all identities: whose surname is whose does not depend on what is left to do
    size = _batch_size(context)
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        images = [decode(dataset.images / request.file_name).image for request in batch]
        yield from (replaced(text) for text in captioner.describe(images, batch))


def _batch_size(context: Context) -> int:
    """Images that are described, and written to disk, at once: at least as many as are asked for at once."""
    caption = context.project.config.caption
    hosted = caption.captioner.startswith("openai:")
    return max(caption.batch_size, caption.concurrency) if hosted else caption.batch_size


def _open_captioner(context: Context) -> Captioner:
    from pogdiff_cli.models.captioners import load_captioner

    caption = context.project.config.caption
    return load_captioner(
        caption.captioner,
        instruction=caption.instruction,
        options=caption.options,
        base_url=caption.base_url,
        key_variable=caption.api_key_env,
        timeout=caption.timeout,
        retries=caption.max_retries,
        threads=caption.concurrency,
        allow_python=caption.allow_python,
        device=str(context.devices.own),
    )


def caption_texts(context: Context, dataset: Dataset) -> list[str]:
    """The caption of each training row, in order."""
    captions = read_captions(context.project.captions)
    return [captions[dataset.records.file_names[row]].caption for row in np.asarray(dataset.train_rows)]
