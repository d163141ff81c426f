"""Did the tail get better? Two runs over the same identities and seeds, one verdict per frequency group."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.cautions import cautions, rated_apart
from pogdiff_cli.metrics.intervals import holm, paired_difference
from pogdiff_cli.metrics.registry import METRICS, did_you_mean
from pogdiff_cli.metrics.scores import GROUPS, Scores

Outcome = Literal["better", "worse", "inconclusive"]
Verdict = Literal["improved", "regressed", "inconclusive"]
PART = {"few": "tail", "medium": "middle", "many": "head", "all": "whole set"}
_SAME = (
    "true_set",
    "images_scored",
    "few_images_per_identity",
    "recall_threshold",
    "copy_threshold",
    "nearest_k",
    "no_face",
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric in one group. ``improvement`` is oriented: positive is better."""

    metric: str
    label: str
    decides: bool
    baseline: float | None  # means over the n identities that have a value in both runs
    candidate: float | None
    improvement: float | None
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None  # Holm, over the deciding metrics of the group
    n: int
    outcome: Outcome
    reason: str | None
    per_identity: Mapping[str, float]  # oriented; by identity


@dataclass(frozen=True, kw_only=True)
class GroupVerdict:
    """What can be said of one frequency group."""

    group: str
    identities: int
    verdict: Verdict
    headline: str  # "tail improved"
    reason: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidate against baseline, the tail first."""

    baseline: str
    candidate: str
    level: float
    deciding: tuple[str, ...]
    groups: tuple[GroupVerdict, ...]
    cautions: tuple[str, ...]

    def group(self, name: str) -> GroupVerdict | None:
        """The verdict of one group, None where no identity belongs to it."""
        return next((verdict for verdict in self.groups if verdict.group == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two runs, and how they are compared."""

    baseline: Scores
    candidate: Scores
    shared: Sequence[str]
    deciding: Sequence[str]
    options: Mapping[str, Any]


def compare(
    baseline: Scores,
    candidate: Scores,
    *,
    deciding: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = 4000,
    least: int = 10,
    seed: int = 0,
) -> Comparison:
    """Paired differences per group and metric, and one verdict per group.

    A metric is "better" (or "worse") where both hold: its interval, from a bootstrap over identities, lies
    wholly above (below) zero; and its sign-flip permutation p, adjusted by Holm over the deciding metrics
    of the group, is below 1 - level. So a group in which nothing changed is called inconclusive at least
    ``level`` of the time, however many metrics were asked for. Companions are tested by themselves and
    carry no verdict.

    A group has improved where some deciding metric is better and none is worse; regressed where some is
    worse and none is better; it is inconclusive otherwise, also where metrics contradict each other, and
    wherever fewer than ``least`` identities leave no interval. The reason says which.

    Runs scored under different settings, extractors or identities are refused: their difference means
    nothing.
    """
    _check_comparable(baseline, candidate)
    apart = ("human",) if rated_apart(baseline, candidate) else ()
    shared = [name for name in METRICS if name in baseline.metrics and name in candidate.metrics and name not in apart]
    chosen = _deciding(deciding, shared)
    pair = _Pair(
        baseline=baseline,
        candidate=candidate,
        shared=shared,
        deciding=chosen,
        options={"level": level, "resamples": resamples, "least": least, "seed": seed},
    )
    groups = tuple(_verdict(pair, group) for group in reversed(GROUPS) if group in candidate.groups)
    found = {group.group: {d.metric: d.outcome for d in group.differences} for group in groups}
    return Comparison(
        baseline=baseline.run,
        candidate=candidate.run,
        level=level,
        deciding=chosen,
        groups=groups,
        cautions=tuple(cautions(baseline, candidate, found)),
    )


def _deciding(asked: Sequence[str] | None, shared: Sequence[str]) -> tuple[str, ...]:
    if asked is None:
        return tuple(name for name in shared if METRICS[name].deciding)
    for name in asked:
        if name not in shared:
            raise PogdiffError(
                f"{name!r} cannot decide: it was not computed for both runs.",
                hint=did_you_mean(name, shared),
                exit_code=Exit.USAGE,
            )
    return tuple(asked)


def _check_comparable(baseline: Scores, candidate: Scores) -> None:
    differing = [
        f"{key} ({baseline.settings.get(key)} and {candidate.settings.get(key)})"
        for key in _SAME
        if baseline.settings.get(key) != candidate.settings.get(key)
    ]
    differing += [
        f"the extractor {key}"
        for key in sorted(baseline.extractors.keys() & candidate.extractors.keys())
        if baseline.extractors[key].digest != candidate.extractors[key].digest
    ]
    judges = [{k: v for k, v in scores.judge.items() if k != "groups"} for scores in (baseline, candidate)]
    if all(judges) and judges[0] != judges[1]:
        differing.append("the judge, or what it was asked")
    who = [{(e.identity, e.shot) for e in scores.per_identity} for scores in (baseline, candidate)]
    if who[0] != who[1]:
        differing.append("the identities, or the groups they belong to")
    if differing:
        raise PogdiffError(
            f"{baseline.run!r} and {candidate.run!r} differ in {'; '.join(differing)}: no comparison.",
            hint="Evaluate both with the same settings.",
            exit_code=Exit.USAGE,
        )


def _verdict(pair: _Pair, group: str) -> GroupVerdict:
    raw = [_difference(pair, group, name) for name in pair.shared]
    tested = [d for d in raw if d.decides and d.p is not None]
    adjusted = dict(zip([d.metric for d in tested], holm([d.p or 0.0 for d in tested]), strict=True))
    differences = tuple(_judge(d, adjusted.get(d.metric), 1 - pair.options["level"]) for d in raw)
    better = [d.label for d in differences if d.decides and d.outcome == "better"]
    worse = [d.label for d in differences if d.decides and d.outcome == "worse"]
    identities = pair.candidate.groups[group].identities
    verdict: Verdict = "inconclusive"
    if better and not worse:
        verdict, reason = "improved", f"better: {', '.join(better)}"
    elif worse and not better:
        verdict, reason = "regressed", f"worse: {', '.join(worse)}"
    elif better and worse:
        reason = f"contradictory: better {', '.join(better)}; worse {', '.join(worse)}"
    elif identities < pair.options["least"]:
        reason = next((d.reason for d in differences if d.reason), "too few identities")
    else:
        reason = _unclear([d for d in differences if d.decides])
    headline = f"{PART[group]} {verdict}"
    return GroupVerdict(
        group=group,
        identities=identities,
        verdict=verdict,
        headline=headline,
        reason=reason,
        differences=differences,
    )


def _unclear(deciding: Sequence[Difference]) -> str:
    """Why nothing is better or worse: the interval holds zero, or it does not and the permutation test disagrees."""
    off_zero = [d.label for d in deciding if d.low is not None and d.high is not None and (d.low > 0 or d.high < 0)]
    if not off_zero:
        return "no deciding metric changed by more than its uncertainty"
    return f"the interval of {', '.join(off_zero)} leaves zero, but the permutation test does not exclude chance"


def _difference(pair: _Pair, group: str, metric: str) -> Difference:
    """Before the adjustment of p: its outcome is filled in by ``_judge``."""
    before, after = (
        {entry.identity: entry.metrics[metric] for entry in scores.members(group)}
        for scores in (pair.baseline, pair.candidate)
    )
    pairs = {key: (value, after[key]) for key, value in before.items()}
    paired = {key: (a, b) for key, (a, b) in pairs.items() if a is not None and b is not None}
    first = np.array([a for a, _ in paired.values()], dtype=np.float64)
    second = np.array([b for _, b in paired.values()], dtype=np.float64)
    sign = 1.0 if METRICS[metric].direction == "higher" else -1.0
    result = paired_difference(sign * first, sign * second, **pair.options)
    return Difference(
        metric=metric,
        label=pair.candidate.metrics[metric].label,
        decides=metric in pair.deciding,
        baseline=float(first.mean()) if paired else None,
        candidate=float(second.mean()) if paired else None,
        improvement=result.interval.value,
        low=result.interval.low,
        high=result.interval.high,
        p=result.p,
        p_adjusted=None,
        n=len(paired),
        outcome="inconclusive",
        reason=result.interval.reason,
        per_identity=dict(zip(paired, result.differences, strict=True)),
    )


def _judge(difference: Difference, p_adjusted: float | None, alpha: float) -> Difference:
    p = difference.p if p_adjusted is None else p_adjusted
    outcome: Outcome = "inconclusive"
    if p is not None and p < alpha and difference.low is not None and difference.high is not None:
        if difference.low > 0:
            outcome = "better"
        elif difference.high < 0:
            outcome = "worse"
    return dataclasses.replace(difference, outcome=outcome, p_adjusted=p_adjusted)
