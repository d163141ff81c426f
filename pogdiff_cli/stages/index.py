"""``pogdiff index``: embeddings of the training images, and the k nearest of each (Eq. 8)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.extractors import Extractor
from pogdiff_cli.models.neighbours import Neighbours, nearest
from pogdiff_cli.models.unit_rows import chunks
from pogdiff_cli.project.atomic import atomic_folder, scratch_folder
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.lineage import plan_index
from pogdiff_cli.stages.context import Context, Made, Result, perform
from pogdiff_cli.stages.dataset import Dataset, load_dataset, refuse_untrainable
from pogdiff_cli.stages.embeddings import copied_to, fill_cache, open_extractor
from pogdiff_cli.stages.inputs import input_digests


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """Neighbours of each training row: rows (n, k) and cosines (n, k)."""

    rows: NDArray[np.int64]
    similarities: NDArray[np.float32]


def run(context: Context) -> Result:
    """Write ``artifacts/index``."""
    dataset = load_dataset(context)
    refuse_untrainable(dataset)
    plan = plan_index(context.project.config)
    return perform(
        context, plan, input_digests(context, plan, dataset), lambda attempt: _index(context, dataset), hands="all"
    )


def read_index(project: Project, training_rows: int) -> Neighbourhood:
    """What ``index`` wrote; it must speak of as many rows as are trained on."""
    rows = np.load(project.index / "neighbours.npy", allow_pickle=False)
    similarities = np.load(project.index / "similarities.npy", allow_pickle=False)
    if len(rows) != training_rows:
        raise PogdiffError(
            f"The index speaks of {len(rows)} images, the data of {training_rows}.",
            hint="Run 'pogdiff index'.",
            exit_code=Exit.MISSING,
        )
    return Neighbourhood(rows=rows, similarities=similarities)


def _index(context: Context, dataset: Dataset) -> Made:
    config = context.project.config.index
    extractor = open_extractor(context, config.extractor)
    rows = dataset.train_rows
    embedded = fill_cache(
        context,
        extractor,
        dataset.paths(rows),
        dataset.keys(rows),
        label="Embedding images",
        batch_size=config.batch_size,
    )
    return _neighbours(context, dataset, extractor, embedded) if context.world.main else Made()


def _neighbours(context: Context, dataset: Dataset, extractor: Extractor, embedded: TensorCache) -> Made:
    project, config = context.project, context.project.config.index
    rows = dataset.train_rows
    # in the index's own scratch folder: the files are large, and a killed run's must not stay
    with scratch_folder(project.cache / "scratch" / "index") as scratch:
        vectors = copied_to(scratch / "embeddings.npy", embedded, dataset.keys(rows), extractor.dim)
        faceless = np.concatenate([np.isnan(vectors[part]).any(axis=1) for part in chunks(len(vectors))])
        found = nearest(vectors, config.k, search=config.search, absent=faceless, track=context.track)
        similarities = np.where(faceless[:, None] | faceless[found.rows], np.float32(0), found.similarities)
        identity = dataset.records.identity[rows]
        facts: dict[str, Any] = {
            "images": len(rows),
            "k": int(found.rows.shape[1]),
            "extractor": extractor.name,
            "extractor_digest": extractor.digest,
            "preprocessing": extractor.preprocessing,
            "dim": extractor.dim,
            "no_face": int(faceless.sum()),
            "mean_similarity": round(float(similarities.mean(dtype=np.float64)), 4),
            "same_identity_share": round(float((identity[found.rows] == identity[:, None]).mean()), 4),
            **_search_facts(found),
        }
        with atomic_folder(project.index) as folder:
            os.replace(scratch / "embeddings.npy", folder / "embeddings.npy")
            np.save(folder / "neighbours.npy", found.rows, allow_pickle=False)
            np.save(folder / "similarities.npy", similarities, allow_pickle=False)
            (folder / "index.json").write_text(json.dumps(facts, indent=1))
    for note in found.notes:
        context.say(note)
    return Made(facts=facts)


def _search_facts(found: Neighbours) -> dict[str, Any]:
    """How the neighbours were searched; of an approximate search, how many of them it finds."""
    if found.recall is None:
        return {"search": "exact"}
    return {
        "search": "approximate",
        "lists": found.recall.lists,
        "probed": found.recall.probed,
        "recall": round(found.recall.value, 4),
        "recall_standard_error": round(found.recall.standard_error, 4),
        "recall_rows": len(found.recall.rows),
    }
