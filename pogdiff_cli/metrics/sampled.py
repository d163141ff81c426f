"""The images of a run that are scored: one identity's share of them, and what varies with the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pogdiff_cli.metrics.features import Array
from pogdiff_cli.metrics.identity import centroids
from pogdiff_cli.metrics.individual import Measured, Subject, measure
from pogdiff_cli.metrics.inputs import IdentityFeatures, ScoreSettings, usable
from pogdiff_cli.metrics.intervals import jackknife_spread
from pogdiff_cli.metrics.recall import recall_curve
from pogdiff_cli.metrics.registry import computed_by

_FOLDS = 10  # of the seeds, for the spread where identities are few


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all identities share."""

    settings: ScoreSettings
    requests: tuple[str, ...]
    counts: Mapping[str, int]
    centres: Mapping[str, Array]  # by extractor
    position: Mapping[str, int]


def subjects_of(identity: IdentityFeatures, task: Task, without: frozenset[int]) -> dict[str, Subject]:
    """The images of one identity that are scored, without those of some seeds."""
    scored = identity.seeds[: task.counts[identity.identity]]
    rows = np.array([row for row, seed in enumerate(scored) if seed not in without], dtype=np.intp)
    return {
        key: Subject(
            sample=usable(identity.features[key], rows, identity.identity),
            own=task.position[identity.identity],
            centres=centres,
        )
        for key, centres in task.centres.items()
    }


def measure_identity(identity: IdentityFeatures, task: Task, without: frozenset[int] = frozenset()) -> Measured:
    """All requested metrics of one identity, computed without the images of some seeds."""
    return measure(subjects_of(identity, task, without), task.requests, task.settings)


def all_centroids(
    identities: Sequence[IdentityFeatures],
    settings: ScoreSettings,
    others: Mapping[str, Sequence[Array]],
) -> dict[str, Array]:
    """Centroids of all real images of each identity, then of the others, by extractor."""
    result = {}
    for key in dict.fromkeys(settings.extractor_of.values()):
        samples = [usable(identity.features[key], slice(0, 0), identity.identity) for identity in identities]
        result[key] = centroids([*(sample.true("exact") for sample in samples), *others.get(key, ())])
    return result


def seed_spreads(inside: Sequence[IdentityFeatures], task: Task) -> dict[str, float | None]:
    """Standard error over seeds of each group mean: a jackknife over at most ten folds of the seeds."""
    seeds = sorted({seed for i in inside for seed in i.seeds[: task.counts[i.identity]]})
    folds = [frozenset(seeds[start::_FOLDS]) for start in range(min(_FOLDS, len(seeds)))]
    left_out: dict[str, list[float]] = {}
    for fold in folds:
        measured = [measure_identity(identity, task, fold) for identity in inside]
        for name in computed_by(task.requests):
            column = [value for value in (one.values[name] for one in measured) if value is not None]
            if column:
                left_out.setdefault(name, []).append(float(np.mean(column)))
    return {name: jackknife_spread(v) for name, v in left_out.items() if len(v) == len(folds)}


def recall_curves(
    members: Mapping[str, Sequence[IdentityFeatures]], task: Task
) -> dict[str, tuple[tuple[int, float], ...]]:
    """Recall against the number of generated images, up to what every identity of the group has."""
    key = task.settings.extractor_of["recall"]
    curves = {}
    for group, inside in members.items():
        samples = [subjects_of(identity, task, frozenset())[key].sample for identity in inside]
        samples = [sample for sample in samples if len(sample.train) and len(sample.fake)]
        if samples:
            counts = _grid(min(len(sample.fake) for sample in samples))
            threshold = task.settings.recall_threshold
            shares = [recall_curve(s.train, s.fake, counts, threshold=threshold) for s in samples]
            curves[group] = tuple(zip(counts, np.mean(shares, axis=0).tolist(), strict=True))
    return curves


def _grid(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 ... and the last."""
    steps = [base * 10**power for power in range(len(str(most))) for base in (1, 2, 5)]
    return [step for step in steps if step < most] + [most]
