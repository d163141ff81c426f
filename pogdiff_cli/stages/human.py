"""What raters said of a run, as an evaluation takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pogdiff_cli.metrics.ratings import HUMAN, read_human
from pogdiff_cli.project.layout import Run
from pogdiff_cli.stages.context import Context


@dataclass(frozen=True, kw_only=True)
class Human:
    """Ratings by metric and identity, and the facts recorded with them; both empty where nobody has rated."""

    ratings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def human_ratings(context: Context, run: Run) -> Human:
    """What is merged counts wherever it is there, but only for the very images that raters saw.

    Asked for and not there, every identity is "not rated".
    """
    absent = Human(ratings={"human": {}} if "human" in context.project.config.evaluate.metrics else {})
    found = read_human(run.evaluation / HUMAN)
    if found is None:
        return absent
    if found.samples != context.project.digests.of(run.samples):
        context.say(f"{run.name}: the images have changed since they were rated; the ratings are not counted.")
        return absent
    facts = {"page": found.page, "protocol": found.protocol["name"], "raters": found.included}
    return Human(ratings={"human": found.per_identity}, facts={"human": facts})
