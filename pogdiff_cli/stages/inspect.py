"""``pogdiff inspect``: the long tail and its troubles, before anything is spent."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pogdiff_cli.data.buckets import bucket_sizes, nearest_buckets
from pogdiff_cli.data.copies import difference_hash, near_copies
from pogdiff_cli.data.images import decode_known
from pogdiff_cli.data.records import Records, read_records
from pogdiff_cli.data.scan import Scan, scan
from pogdiff_cli.data.summary import summarise
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.project.atomic import write_text
from pogdiff_cli.stages.caption import read_names
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.inputs import load_adapter

_COMPARED_AT_MOST = 20_000


def run(context: Context) -> dict[str, Any]:
    """Facts of the data as JSON values; also written to ``inspect.json``."""
    project = context.project
    records = read_records(project.images, project.metadata)
    project.cache.mkdir(parents=True, exist_ok=True)
    found = scan(records, project.images, cache=project.cache / "scan.jsonl", track=context.track)
    data = project.config.data
    adapter = _adapter(context)
    facts = summarise(
        records,
        found,
        few_at_most=data.few_at_most,
        many_at_least=data.many_at_least,
        near_duplicates=_near_duplicates(context, records, found),
        names=read_names(context) if project.names.is_file() else None,
        **_limit(adapter),
    )
    if data.resize == "bucket":
        facts["buckets"] = _buckets(context, records, found, 8 if adapter is None else adapter.side_multiple)
    write_text(project.root / "inspect.json", json.dumps(facts, indent=1, ensure_ascii=False))
    return facts


def _buckets(context: Context, records: Records, found: Scan, multiple: int) -> dict[str, int]:
    """Training images of each size that they are brought to, most first."""
    resolution = context.project.config.data.resolution
    sizes = bucket_sizes(resolution, multiple)
    numbers = nearest_buckets(found.sizes[found.ok & ~records.heldout], resolution, multiple)
    counts = np.bincount(numbers, minlength=len(sizes))
    order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
    shown = {"x".join(map(str, sizes[number])): int(counts[number]) for number in order}
    context.say("Aspect buckets: " + ", ".join(f"{size} ({count})" for size, count in shown.items()) + ".")
    return shown


def _limit(adapter: Adapter | None) -> dict[str, Any]:
    return {} if adapter is None else {"tokens": adapter.count_tokens, "token_limit": adapter.token_limit}


def _near_duplicates(context: Context, records: Records, found: Scan) -> list[list[str]]:
    """Groups of images that look alike; left out for sets too large to look at twice."""
    rows = np.flatnonzero(found.ok)
    if len(rows) > _COMPARED_AT_MOST:
        context.say(f"More than {_COMPARED_AT_MOST} images: they are not searched for near duplicates.")
        return []
    hashes = (
        (name, difference_hash(decode_known(context.project.images / name, found.sha256[row])))
        for row in context.track(rows.tolist(), "Comparing images", len(rows))
        for name in [records.file_names[row]]
    )
    return near_copies(hashes)


def _adapter(context: Context) -> Adapter | None:
    """How texts are counted and sizes rounded; None where the model is not on this machine yet."""
    try:
        adapter = load_adapter(context)
        adapter.count_tokens("a")
    except PogdiffError as problem:
        context.say(f"Captions are not measured against the tokenizer's limit: {problem.message}")
        return None
    return adapter
