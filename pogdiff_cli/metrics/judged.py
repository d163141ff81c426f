"""From a judge's answers to a score per identity, with everything that was answered but is no score beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pogdiff_cli.metrics.answers import Outcome, Reading
from pogdiff_cli.metrics.intervals import jackknife_spread

_FOLDS = 10  # of the seeds, as for the metrics of features


@dataclass(frozen=True, kw_only=True)
class JudgedImage:
    """One generated image and how each repeat of its question was answered."""

    identity: str
    seed: int
    readings: tuple[Reading, ...]

    @property
    def scores(self) -> list[float]:
        """The scores among the answers."""
        return [reading.score for reading in self.readings if reading.score is not None]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What joins the scores of a run: values by metric and identity, reasons for those that are missing."""

    label: str
    method: Mapping[str, Any]  # model, protocol, prompt digest...: runs that differ here are not compared
    images: tuple[JudgedImage, ...]
    unasked: Mapping[str, str] = field(default_factory=dict)  # identities that could not be asked about, and why

    def values(self) -> dict[str, dict[str, float]]:
        """By metric and identity: mean score, share of answers that are a score, spread over the repeats.

        A score is the mean over images of each image's mean over its answers, so that an image that is often
        refused weighs no less; the spread is the mean over images of the standard deviation (n - 1).
        """
        found: dict[str, dict[str, float]] = {"judge": {}, "judge_answered": {}, "judge_spread": {}}
        for identity, images in self.by_identity().items():
            answers = sum(len(image.readings) for image in images)
            means = [float(np.mean(image.scores)) for image in images if image.scores]
            spreads = [float(np.std(image.scores, ddof=1)) for image in images if len(image.scores) > 1]
            if answers:
                found["judge_answered"][identity] = sum(len(image.scores) for image in images) / answers
            if means:
                found["judge"][identity] = float(np.mean(means))
            if spreads:
                found["judge_spread"][identity] = float(np.mean(spreads))
        return found

    def reason(self, identity: str) -> str:
        """Why an identity has no value."""
        images = self.by_identity().get(identity, [])
        if not images:
            return self.unasked.get(identity, "no generated image")
        if any(image.scores for image in images):
            return "no image has two scores"  # a spread needs them
        said = Counter(reading.outcome for image in images for reading in image.readings)
        counts = ", ".join(f"{count} {_WORDS[outcome]}" for outcome, count in said.most_common())
        return f"no answer is a score: {counts}"

    def in_words(self) -> str:
        """How many answers are a score, and what the others are."""
        counts = self._counts([image.identity for image in self.images])
        return ", ".join(f"{counts[name]} {word}" for name, word in _WORDS.items())

    def by_identity(self) -> dict[str, list[JudgedImage]]:
        """The images of each identity, in the order of their seeds."""
        found: dict[str, list[JudgedImage]] = {}
        for image in self.images:
            found.setdefault(image.identity, []).append(image)
        return found

    def seed_spread(self, identities: Sequence[str]) -> float | None:
        """Standard error over seeds of these identities' mean score: a jackknife over at most ten folds."""
        means = {(image.identity, image.seed): float(np.mean(image.scores)) for image in self.images if image.scores}
        wanted = set(identities)
        seeds = sorted({seed for identity, seed in means if identity in wanted})
        folds = [set(seeds[start::_FOLDS]) for start in range(min(_FOLDS, len(seeds)))]
        left_out = []
        for fold in folds:
            kept: dict[str, list[float]] = {}
            for (identity, seed), mean in means.items():
                if identity in wanted and seed not in fold:
                    kept.setdefault(identity, []).append(mean)
            if kept:
                left_out.append(float(np.mean([np.mean(values) for values in kept.values()])))
        return jackknife_spread(left_out) if len(left_out) == len(folds) else None

    def companions(self, members: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Model, prompt and counts of every group of identities, as they stand beside the scores."""
        return {**self.method, "groups": {group: self._counts(names) for group, names in members.items()}}

    def _counts(self, identities: Sequence[str]) -> dict[str, int]:
        wanted = set(identities)
        inside = [image for image in self.images if image.identity in wanted]
        said = Counter(reading.outcome for image in inside for reading in image.readings)
        return {"images": len(inside), "answers": sum(said.values()), **{name: said[name] for name in _WORDS}}


_WORDS: dict[Outcome, str] = {
    "score": "scores",
    "refused": "refused",
    "unparsable": "unparsable",
    "out_of_range": "out of range",
}
