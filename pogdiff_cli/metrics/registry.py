"""The metrics by name: what each is called, which way is better, and which request computes it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pogdiff_cli.errors import Exit, PogdiffError

Direction = Literal["higher", "lower"]

#: Whose features a metric is computed from: the face recogniser's, or the general encoder's (App. B and E).
#: What is not here needs none.
FEATURES_OF: dict[str, Literal["face", "dino"]] = {
    "fid": "face",
    "kid": "face",
    "prdc": "face",
    "identity": "face",
    "bleed": "face",
    "dino": "dino",
    "recall": "dino",
    "copy": "dino",
}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number per identity."""

    name: str
    title: str
    direction: Direction
    meaning: str
    deciding: bool = False  # may carry a verdict; the others are companions
    share: bool = False  # lies in [0, 1]

    def label(self, extractor: str | None = None) -> str:
        """The title with the feature space it was measured in: "FID (dlib)"."""
        return f"{self.title} ({extractor})" if extractor else self.title


def _metrics(*metrics: Metric) -> Mapping[str, Metric]:
    return MappingProxyType({metric.name: metric for metric in metrics})


METRICS: Mapping[str, Metric] = _metrics(
    Metric(
        name="identity",
        title="Identity accuracy",
        direction="higher",
        deciding=True,
        share=True,
        meaning="share of images whose nearest identity centroid is the one that was asked for",
    ),
    Metric(
        name="bleed",
        title="Bleed margin",
        direction="higher",
        meaning="cosine to the own identity's centroid minus the nearest other one",
    ),
    Metric(
        name="similarity",
        title="Similarity",
        direction="higher",
        deciding=True,
        meaning="mean cosine of generated with real images of the identity (the paper's DINO score)",
    ),
    Metric(
        name="recall",
        title="Recall",
        direction="higher",
        deciding=True,
        share=True,
        meaning="share of training images that some generated image comes close to (Eq. 17)",
    ),
    Metric(
        name="fid",
        title="FID",
        direction="lower",
        deciding=True,
        meaning="Frechet distance of generated from real images, per identity",
    ),
    Metric(
        name="fid_mean_part",
        title="FID, mean part",
        direction="lower",
        meaning="squared distance between the two means: the wrong person",
    ),
    Metric(
        name="fid_trace_part",
        title="FID, trace part",
        direction="lower",
        meaning="distance between the two covariances: the wrong variety",
    ),
    Metric(
        name="mean_gap_unbiased",
        title="Unbiased mean gap",
        direction="lower",
        meaning="the mean part less what sampling alone would give; may be negative",
    ),
    Metric(
        name="kid",
        title="KID",
        direction="lower",
        meaning="kernel distance as a full U-statistic: unbiased at any number of images, may be negative",
    ),
    Metric(
        name="precision",
        title="Precision",
        direction="higher",
        share=True,
        meaning="share of generated images inside the real ones' neighbourhoods",
    ),
    Metric(
        name="prdc_recall",
        title="Neighbourhood recall",
        direction="higher",
        share=True,
        meaning="share of real images inside the generated ones' neighbourhoods",
    ),
    Metric(
        name="density",
        title="Density",
        direction="higher",
        meaning="real neighbourhoods around a generated image, over k",
    ),
    Metric(
        name="coverage",
        title="Coverage",
        direction="higher",
        share=True,
        meaning="share of real neighbourhoods that hold a generated image",
    ),
    Metric(
        name="copy",
        title="Copy rate",
        direction="lower",
        share=True,
        meaning="share of generated images that nearly equal a training image",
    ),
    Metric(
        name="copy_reference",
        title="Copy rate of held-out photos",
        direction="lower",
        share=True,
        meaning="the same share among real unseen images: what no copying looks like",
    ),
    Metric(
        name="judge",
        title="Judge",
        direction="higher",
        deciding=True,
        meaning="mean score, 0 to 10, that a vision-language model gives the generated images",
    ),
    Metric(
        name="judge_answered",
        title="Judge, answered",
        direction="higher",
        share=True,
        meaning="share of the judge's answers that are a score: the others were refused, unreadable or out of range",
    ),
    Metric(
        name="judge_spread",
        title="Judge, spread",
        direction="lower",
        meaning="standard deviation of the judge's scores of one image over the repeats",
    ),
    Metric(
        name="human",
        title="Human rating",
        direction="higher",
        deciding=True,
        meaning="mean answer of blinded raters: same person or not, 0 to 1, or likeness, 1 to 5",
    ),
)

REQUESTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fid": ("fid", "fid_mean_part", "fid_trace_part", "mean_gap_unbiased"),
        "kid": ("kid",),
        "prdc": ("precision", "prdc_recall", "density", "coverage"),
        "dino": ("similarity",),
        "similarity": ("similarity",),
        "recall": ("recall",),
        "identity": ("identity",),
        "bleed": ("bleed",),
        "copy": ("copy", "copy_reference"),
        "judge": ("judge", "judge_answered", "judge_spread"),
        "human": ("human",),
    }
)
#: Values that come per identity from elsewhere, not from features.
FROM_RATINGS = ("judge", "judge_answered", "judge_spread", "human")


def computed_by(requests: Sequence[str]) -> tuple[str, ...]:
    """Requests -> the metrics they compute, in the registry's order, each once; refuses an unknown one."""
    for request in requests:
        if request not in REQUESTS:
            raise PogdiffError(
                f"Unknown metric {request!r}.", hint=did_you_mean(request, REQUESTS), exit_code=Exit.USAGE
            )
    wanted = {name for request in requests for name in REQUESTS[request]}
    return tuple(name for name in METRICS if name in wanted)


def request_of(metric: str, requests: Sequence[str]) -> str | None:
    """The request that computed a metric, None for one that came from raters."""
    return next((request for request in requests if metric in REQUESTS.get(request, ())), None)


def did_you_mean(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """The remedy for a misspelt name."""
    close = difflib.get_close_matches(word, list(known), n=1)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return f"{guess}Known: {', '.join(known)}."
