"""From features to scores: each identity alone, then means over identities and how sure they are."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from threadpoolctl import threadpool_limits

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.features import Array
from pogdiff_cli.metrics.inputs import (
    ExtractorInfo,
    IdentityFeatures,
    ScoreSettings,
    images_scored,
)
from pogdiff_cli.metrics.intervals import bootstrap_mean
from pogdiff_cli.metrics.judged import Judged
from pogdiff_cli.metrics.registry import FROM_RATINGS, METRICS, REQUESTS, computed_by, request_of
from pogdiff_cli.metrics.sampled import (
    Task,
    all_centroids,
    measure_identity,
    recall_curves,
    seed_spreads,
    subjects_of,
)
from pogdiff_cli.metrics.scores import (
    GROUPS,
    GroupScores,
    GroupValue,
    IdentityScores,
    MetricInfo,
    MissingFaces,
    Scores,
)
from pogdiff_cli.progress import Track, untracked

Nothing: Mapping[str, Any] = MappingProxyType({})


def score(
    identities: Sequence[IdentityFeatures],
    *,
    run: str,
    method: str,
    settings: ScoreSettings,
    extractors: Mapping[str, ExtractorInfo],
    ratings: Mapping[str, Mapping[str, float]] = Nothing,
    judged: Judged | None = None,
    others: Mapping[str, Sequence[Array]] = Nothing,
    track: Track = untracked,
) -> Scores:
    """Score one run.

    Args:
        identities: features of every identity that was trained on and sampled.
        run: the run's name.
        method: the training method.
        settings: which metrics, from whose features, and how.
        extractors: what stands behind each extractor key.
        ratings: values per identity that come from raters: {"human" | "judge": {identity: mean score}}.
        judged: the answers of a judge, whose values join the ratings.
        others: by extractor key, real images of people outside the set; more faces to be mistaken for.
        track: told how far the scoring is.
    """
    named = {identity.identity: identity for identity in identities}
    ratings = {**ratings, **(judged.values() if judged else {})}
    _check(identities, named, settings, extractors)
    # Thousands of small products: waking a second BLAS thread for each costs far more than it saves.
    with threadpool_limits(limits=1, user_api="blas"):
        task = Task(
            settings=settings,
            requests=tuple(settings.extractor_of),
            counts=images_scored(named, settings),
            centres=all_centroids(identities, settings, others),
            position={key: row for row, key in enumerate(named)},
        )
        metrics = (*computed_by(task.requests), *(name for name in FROM_RATINGS if name in ratings))
        scored = tuple(
            _identity(identity, task, metrics, ratings, list(named.values()), judged)
            for identity in track(identities, "Scoring identities", len(identities))
        )
        members = {group: [i for i in identities if group in ("all", i.shot)] for group in GROUPS}
        return Scores(
            run=run,
            method=method,
            settings=_recorded(settings, task.counts),
            extractors=dict(extractors),
            metrics={name: _info(name, settings, extractors, judged) for name in metrics},
            per_identity=scored,
            groups={
                group: _group(inside, scored, task, metrics, ratings, judged)
                for group, inside in members.items()
                if inside
            },
            recall_curve=recall_curves(members, task) if "recall" in metrics else {},
            judge=judged.companions({g: [i.identity for i in m] for g, m in members.items() if m}) if judged else {},
        )


def _check(
    identities: Sequence[IdentityFeatures],
    named: Mapping[str, IdentityFeatures],
    settings: ScoreSettings,
    extractors: Mapping[str, ExtractorInfo],
) -> None:
    if not identities:
        raise PogdiffError("There is no identity to score.", exit_code=Exit.DATA)
    if len(named) < len(identities):
        raise PogdiffError("An identity occurs twice among those to score.", exit_code=Exit.DATA)
    unknown = sorted(set(settings.extractor_of.values()) - set(extractors))
    if unknown:
        raise PogdiffError(f"No extractor is named {unknown[0]!r}.", exit_code=Exit.USAGE)
    for identity in identities:
        for key, features in identity.features.items():
            if len(features.fake) != len(identity.seeds):
                raise PogdiffError(
                    f"{identity.identity!r} has {len(identity.seeds)} seeds but {len(features.fake)} "
                    f"generated images under {key!r}.",
                    hint="An image without a face keeps its row, filled with NaN.",
                    exit_code=Exit.DATA,
                )


def _identity(
    identity: IdentityFeatures,
    task: Task,
    metrics: Sequence[str],
    ratings: Mapping[str, Mapping[str, float]],
    everybody: Sequence[IdentityFeatures],
    judged: Judged | None,
) -> IdentityScores:
    measured = measure_identity(identity, task)
    rated = {name: ratings[name].get(identity.identity) for name in FROM_RATINGS if name in ratings}
    values = {**measured.values, **rated}
    why = {name: judged.reason(identity.identity) if judged else "not rated" for name in REQUESTS["judge"]}
    unrated = {name: why.get(name, "not rated") for name, value in rated.items() if value is None}
    reasons = {**measured.reasons, **unrated}
    wrong = measured.confused_with
    outside = "someone outside the set"
    return IdentityScores(
        identity=identity.identity,
        name=identity.name,
        shot=identity.shot,
        train_count=identity.train_count,
        heldout_count=identity.heldout_count,
        generated=task.counts[identity.identity],
        confused_with=None if wrong is None else everybody[wrong].name if wrong < len(everybody) else outside,
        missing={
            key: MissingFaces(
                train=subject.sample.missing_train,
                heldout=subject.sample.missing_heldout,
                generated=subject.sample.missing_fake,
            )
            for key, subject in subjects_of(identity, task, frozenset()).items()
        },
        metrics={name: values[name] for name in metrics},
        reasons=reasons,
    )


def _group(
    inside: Sequence[IdentityFeatures],
    scored: Sequence[IdentityScores],
    task: Task,
    metrics: Sequence[str],
    ratings: Mapping[str, Mapping[str, float]],
    judged: Judged | None,
) -> GroupScores:
    members = {identity.identity for identity in inside}
    settings = task.settings
    few = len(inside) <= settings.least_identities
    spreads = seed_spreads(inside, task) if few else {}
    if few and judged:
        spreads["judge"] = judged.seed_spread([identity.identity for identity in inside])
    values: dict[str, GroupValue] = {}
    for name in metrics:
        column = [entry.metrics[name] for entry in scored if entry.identity in members]
        interval = bootstrap_mean(
            [value for value in column if value is not None],
            seed=settings.seed,
            level=settings.level,
            resamples=settings.resamples,
            least=settings.least_identities,
        )
        if not interval.n:
            interval = dataclasses.replace(interval, reason=_commonest(name, members, scored))
        values[name] = GroupValue(**dataclasses.asdict(interval), seed_spread=spreads.get(name))
    images = [task.counts[identity.identity] for identity in inside]
    return GroupScores(identities=len(inside), metrics=values, fewest_images=min(images), most_images=max(images))


def _commonest(metric: str, members: set[str], scored: Sequence[IdentityScores]) -> str:
    """Why a whole group has no value: the reason that most of its identities give."""
    reasons = Counter(e.reasons[metric] for e in scored if e.identity in members and metric in e.reasons)
    return reasons.most_common(1)[0][0]


def _info(
    name: str, settings: ScoreSettings, extractors: Mapping[str, ExtractorInfo], judged: Judged | None
) -> MetricInfo:
    request = request_of(name, tuple(settings.extractor_of))
    key = settings.extractor_of[request] if request else None
    metric = METRICS[name]
    source = extractors[key].name if key else judged.label if judged and name in REQUESTS["judge"] else None
    return MetricInfo(label=metric.label(source), direction=metric.direction, extractor=key)


def _recorded(settings: ScoreSettings, counts: Mapping[str, int]) -> dict[str, Any]:
    """The settings as plain JSON, with the number of images that "equal" came to."""
    plain = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name not in ("extractor_of", "extra")
    }
    distinct = sorted(set(counts.values()))
    return {
        **plain,
        "extractor_of": dict(settings.extractor_of),
        "images_scored": distinct[0] if len(distinct) == 1 else distinct,
        **settings.extra,
    }
