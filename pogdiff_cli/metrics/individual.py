"""The metrics of one identity, each a number or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pogdiff_cli.metrics.features import Array
from pogdiff_cli.metrics.frechet import frechet
from pogdiff_cli.metrics.identity import Identification, identify
from pogdiff_cli.metrics.inputs import Sample, ScoreSettings
from pogdiff_cli.metrics.kernel import kernel_distance
from pogdiff_cli.metrics.prdc import prdc
from pogdiff_cli.metrics.recall import coverage
from pogdiff_cli.metrics.registry import REQUESTS
from pogdiff_cli.metrics.similarity import copy_rate, mean_cosine

Values = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One identity as one extractor sees it, among the centroids of all identities."""

    sample: Sample
    own: int  # row of its centroid
    centres: Array  # (c, d)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Values by metric, reasons for those that are None, and whom the identity is mistaken for."""

    values: Values
    reasons: dict[str, str]
    confused_with: int | None


def measure(subjects: Mapping[str, Subject], requests: Sequence[str], settings: ScoreSettings) -> Measured:
    """All requested metrics of one identity; ``subjects`` by extractor key."""
    values: Values = {}
    reasons: dict[str, str] = {}
    found: Identification | None = None
    for request in requests:
        subject = subjects[settings.extractor_of[request]]
        computed = _COMPUTE[request](subject, settings)
        values.update(computed)
        missing = [name for name in REQUESTS[request] if computed[name] is None]
        reasons.update({name: _reason(name, subject, settings) for name in missing})
        if request in ("identity", "bleed"):
            found = identify(subject.sample.fake, subject.own, subject.centres)
    return Measured(values=values, reasons=reasons, confused_with=found.confused_with if found else None)


def _fid(subject: Subject, settings: ScoreSettings) -> Values:
    real, fake = subject.sample.true(settings.true_set), subject.sample.fake
    if not len(real) or not len(fake):
        return dict.fromkeys(REQUESTS["fid"])
    result = frechet(real, fake)
    return {
        "fid": result.distance,
        "fid_mean_part": result.mean_part,
        "fid_trace_part": result.trace_part,
        "mean_gap_unbiased": result.mean_gap_unbiased,
    }


def _kid(subject: Subject, settings: ScoreSettings) -> Values:
    return {"kid": kernel_distance(subject.sample.true(settings.true_set), subject.sample.fake)}


def _prdc(subject: Subject, settings: ScoreSettings) -> Values:
    real = subject.sample.true(settings.true_set)
    result = prdc(real, subject.sample.fake, nearest_k=settings.nearest_k)
    if result is None:
        return dict.fromkeys(REQUESTS["prdc"])
    return {
        "precision": result.precision,
        "prdc_recall": result.recall,
        "density": result.density,
        "coverage": result.coverage,
    }


def _similarity(subject: Subject, settings: ScoreSettings) -> Values:
    return {"similarity": mean_cosine(subject.sample.fake, subject.sample.true(settings.true_set))}


def _recall(subject: Subject, settings: ScoreSettings) -> Values:
    sample = subject.sample
    if not len(sample.fake) and not sample.missing_fake:
        return {"recall": None}
    result = coverage(sample.train, sample.fake, threshold=settings.recall_threshold)
    return {"recall": result.share if result else None}


def _identity(subject: Subject, settings: ScoreSettings) -> Values:
    sample = subject.sample
    result = identify(sample.fake, subject.own, subject.centres)
    if result is None:
        nobody = sample.missing_fake and settings.no_face == "wrong" and not len(sample.fake)
        return {"identity": 0.0 if nobody else None}
    faceless = sample.missing_fake if settings.no_face == "wrong" else 0
    return {"identity": result.correct / (result.total + faceless)}


def _bleed(subject: Subject, settings: ScoreSettings) -> Values:
    del settings
    result = identify(subject.sample.fake, subject.own, subject.centres)
    return {"bleed": result.margin if result else None}


def _copy(subject: Subject, settings: ScoreSettings) -> Values:
    sample, threshold = subject.sample, settings.copy_threshold
    return {
        "copy": copy_rate(sample.fake, sample.train, threshold=threshold),
        "copy_reference": copy_rate(sample.heldout, sample.train, threshold=threshold),
    }


_COMPUTE: Mapping[str, Callable[[Subject, ScoreSettings], Values]] = {
    "fid": _fid,
    "kid": _kid,
    "prdc": _prdc,
    "dino": _similarity,
    "similarity": _similarity,
    "recall": _recall,
    "identity": _identity,
    "bleed": _bleed,
    "copy": _copy,
}


def _reason(metric: str, subject: Subject, settings: ScoreSettings) -> str:
    """Why a metric has no value for this identity."""
    sample = subject.sample
    real = len(sample.true(settings.true_set))
    if metric != "copy_reference" and not len(sample.fake):
        reason = "no face found in any generated image" if sample.missing_fake else "no generated image"
    elif metric in _WITHOUT_TRUE_SET:
        reason = _WITHOUT_TRUE_SET[metric]
    elif not real:
        reason = "no held-out image" if settings.true_set == "heldout" else "no real image"
    elif metric in REQUESTS["prdc"]:
        reason = f"{min(real, len(sample.fake))} images, fewer than k + 2 = {settings.nearest_k + 2}"
    else:
        reason = "a single image has no spread"
    return reason


_ALONE = "no other identity to compare with, or no real image of this one"
_WITHOUT_TRUE_SET = {
    "copy_reference": "no held-out or no training image",
    "copy": "no training image",
    "recall": "no training image",
    "identity": _ALONE,
    "bleed": _ALONE,
}
