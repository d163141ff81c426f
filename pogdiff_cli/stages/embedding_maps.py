"""Fig. 9 for the report: features of a few identities' real and generated images, as the evaluation saw them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.models.extractors import Extractor
from pogdiff_cli.project.layout import Run
from pogdiff_cli.report.content import EmbeddingMap, IdentityReport, RunReport
from pogdiff_cli.report.views import ranked
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.dataset import Dataset
from pogdiff_cli.stages.embeddings import embed, open_extractor
from pogdiff_cli.stages.evaluate import content_key, read_samples

_PER_GROUP = {"few": 2, "medium": 1, "many": 1}
_MOST_OTHERS = 400  # real images of other identities behind them
Features = NDArray[np.float64]


def embedding_maps(
    context: Context, dataset: Dataset, runs: Sequence[Run], reports: Sequence[RunReport]
) -> tuple[EmbeddingMap, ...]:
    """Of two of the rarest identities and one of each other group; none where the features are another extractor's."""
    scored = [(run, report.scores) for run, report in zip(runs, reports, strict=True) if report.scores]
    used = [scores.extractors for _, scores in scored]
    key = next((key for key in ("face", "dino") if used and all(key in known for known in used)), None)
    if key is None:
        return ()
    try:
        extractor = open_extractor(context, getattr(context.project.config.evaluate, key))
        if {known[key].digest for known in used} != {extractor.digest}:
            raise PogdiffError("the runs were scored with another extractor than pogdiff.yaml names now.")
        return tuple(_maps(context, dataset, [run for run, _ in scored], extractor, _chosen(dataset, reports)))
    except PogdiffError as problem:  # weights that are gone, for instance: the page is made all the same
        context.say(f"The report has no embedding maps: {problem.message}")
        return ()


def _chosen(dataset: Dataset, reports: Sequence[RunReport]) -> list[str]:
    """Identities that every run was scored on, the tail first."""
    known = set(dataset.records.identity_names)
    everywhere = [{e.identity for e in report.scores.per_identity} for report in reports if report.scores]
    shots = {e.identity: e for report in reports if report.scores for e in report.scores.per_identity}
    shared = set.intersection(known, *everywhere)
    candidates = ranked(
        [
            IdentityReport(identity=name, name=entry.name, shot=entry.shot, train_count=entry.train_count)
            for name, entry in shots.items()
            if name in shared
        ]
    )
    return [
        found.identity
        for group, most in _PER_GROUP.items()
        for found in [each for each in candidates if each.shot == group][:most]
    ]


def _maps(
    context: Context, dataset: Dataset, runs: Sequence[Run], extractor: Extractor, chosen: Sequence[str]
) -> list[EmbeddingMap]:
    generated = {
        run.name: {group.identity: list(group.paths) for group in read_samples(run) if group.identity in chosen}
        for run in runs
    }
    real = _real(context, dataset, extractor)
    size = context.project.config.evaluate.batch_size
    maps = []
    for identity in chosen:
        own = dataset.records.identity == dataset.records.identity_names.index(identity)
        paths = [path for run in runs for path in generated[run.name].get(identity, ())]
        keys = [content_key(context, path) for path in paths]
        rows = embed(context, extractor, paths, keys, label="Generated images of the map", batch_size=size)
        ends = np.cumsum([len(generated[run.name].get(identity, ())) for run in runs])[:-1]
        parts = zip(runs, np.split(rows, ends), strict=True)
        maps.append(
            EmbeddingMap(
                identity=identity,
                extractor=extractor.name,
                real=_usable(real[own]),
                others=_usable(real[~own])[:: max(1, int((~own).sum()) // _MOST_OTHERS)],
                generated={run.name: _usable(part) for run, part in parts},
            )
        )
    return [found for found in maps if len(found.real)]


def _real(context: Context, dataset: Dataset, extractor: Extractor) -> NDArray[np.float32]:
    rows = np.arange(len(dataset.records), dtype=np.int64)
    size = context.project.config.evaluate.batch_size
    label = f"Real images ({extractor.name})"
    return embed(context, extractor, dataset.paths(rows), dataset.keys(rows), label=label, batch_size=size)


def _usable(rows: NDArray[np.float32]) -> Features:
    """Without images in which no face was found."""
    return rows[~np.isnan(rows).any(axis=1)].astype(np.float64)
