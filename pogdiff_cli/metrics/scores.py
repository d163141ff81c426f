"""The result of an evaluation, and the JSON it is kept in (``scores.json``).

::

    {"schema": "pogdiff.scores/1", "run": str, "method": str, "settings": {...},
     "extractors": {key: {"name": str, "digest": str, "dim": int}},
     "metrics": {metric: {"label": str, "direction": "higher" | "lower", "extractor": key | null}},
     "per_identity": [{"identity": str, "name": str, "shot": "many" | "medium" | "few", "train_count": int,
                       "heldout_count": int, "generated": int, "confused_with": str | null,
                       "missing": {extractor key: {"train": int, "heldout": int, "generated": int}},
                       "metrics": {metric: float | null}, "reasons": {metric: str}}],
     "few_per_identity": [the same for the group few, where it is scored on a number of images of its own],
     "groups": {"all" | "many" | "medium" | "few":
                {"identities": int, "fewest_images": int, "most_images": int,
                 "metrics": {metric: {"value": float | null, "low": float | null, "high": float | null,
                                      "n": int, "method": str | null, "reason": str | null,
                                      "seed_spread": float | null}}}},
     "judge": {"model": str, "protocol": str, "prompt": digest, ..., "groups": {group: {"images": int, "answers": int,
               "score": int, "refused": int, "unparsable": int, "out_of_range": int}}} | {},
     "curves": {"recall": {group: [[N, recall], ...]}}}

A null number always has its reason beside it. Groups without an identity are left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.inputs import ExtractorInfo, Shot
from pogdiff_cli.metrics.registry import METRICS, Direction

SCHEMA = "pogdiff.scores/1"
GROUPS = ("all", "many", "medium", "few")


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """How a metric of this result is to be read."""

    label: str
    direction: Direction
    extractor: str | None


@dataclass(frozen=True, kw_only=True)
class GroupValue:
    """Mean over the n identities of a group that have a value."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str | None
    reason: str | None
    seed_spread: float | None = None  # standard error over seeds, where identities are too few for an interval


@dataclass(frozen=True, kw_only=True)
class GroupScores:
    """One frequency group."""

    identities: int
    metrics: Mapping[str, GroupValue]
    fewest_images: int | None = None  # generated images of an identity that are scored
    most_images: int | None = None


@dataclass(frozen=True, kw_only=True)
class MissingFaces:
    """Images in which an extractor found no face."""

    train: int
    heldout: int
    generated: int


@dataclass(frozen=True, kw_only=True)
class IdentityScores:
    """One identity."""

    identity: str
    name: str
    shot: Shot
    train_count: int
    heldout_count: int
    generated: int  # images scored
    confused_with: str | None
    missing: Mapping[str, MissingFaces]
    metrics: Mapping[str, float | None]
    reasons: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One run, scored."""

    run: str
    method: str
    settings: Mapping[str, Any]
    extractors: Mapping[str, ExtractorInfo]
    metrics: Mapping[str, MetricInfo]
    per_identity: tuple[IdentityScores, ...]
    groups: Mapping[str, GroupScores]
    recall_curve: Mapping[str, tuple[tuple[int, float], ...]]
    judge: Mapping[str, Any] = field(default_factory=dict)  # who judged, and how many answers are no score
    few_per_identity: tuple[IdentityScores, ...] = ()  # of the group few, where it is scored on other images

    def members(self, group: str) -> tuple[IdentityScores, ...]:
        """The identities whose values a group is the mean of."""
        if group == "few" and self.few_per_identity:
            return self.few_per_identity
        return tuple(entry for entry in self.per_identity if group in ("all", entry.shot))

    def to_json(self) -> dict[str, Any]:
        """The schema above, ready for ``json.dumps(..., allow_nan=False)``."""
        body = dataclasses.asdict(self)
        curve = {group: [list(point) for point in points] for group, points in self.recall_curve.items()}
        del body["recall_curve"]
        return {
            "schema": SCHEMA,
            **body,
            "per_identity": list(body["per_identity"]),
            "few_per_identity": list(body["few_per_identity"]),
            "curves": {"recall": curve},
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Scores:
        """Read what ``to_json`` wrote; another schema is refused."""
        if body.get("schema") != SCHEMA:
            raise PogdiffError(
                f"These scores have schema {body.get('schema')!r}, not {SCHEMA!r}.",
                hint="Evaluate the run again.",
                exit_code=Exit.MISSING,
            )
        try:
            return _read(body)
        except (KeyError, TypeError, AttributeError) as error:
            raise PogdiffError(
                f"These scores are damaged: {error}.", hint="Evaluate the run again.", exit_code=Exit.MISSING
            ) from error


def read_scores(path: Path) -> Scores:
    """A ``scores.json`` from disk."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PogdiffError(
            f"{path} does not exist.", hint="Run `pogdiff evaluate` first.", exit_code=Exit.MISSING
        ) from error
    except ValueError as error:
        raise PogdiffError(
            f"{path} is not JSON: {error}.", hint="Evaluate the run again.", exit_code=Exit.MISSING
        ) from error
    if not isinstance(body, dict):
        raise PogdiffError(f"{path} holds no scores.", hint="Evaluate the run again.", exit_code=Exit.MISSING)
    return Scores.from_json(body)


def _read(body: Mapping[str, Any]) -> Scores:
    return Scores(
        run=body["run"],
        method=body["method"],
        settings=body["settings"],
        extractors={key: ExtractorInfo(**info) for key, info in body["extractors"].items()},
        metrics={name: MetricInfo(**info) for name, info in body["metrics"].items() if name in METRICS},
        per_identity=tuple(_read_identity(entry) for entry in body["per_identity"]),
        groups={
            group: GroupScores(
                identities=entry["identities"],
                metrics={name: GroupValue(**value) for name, value in entry["metrics"].items()},
                fewest_images=entry.get("fewest_images"),
                most_images=entry.get("most_images"),
            )
            for group, entry in body["groups"].items()
        },
        recall_curve={
            group: tuple((int(n), float(share)) for n, share in points)
            for group, points in body["curves"]["recall"].items()
        },
        judge=body.get("judge", {}),
        few_per_identity=tuple(_read_identity(entry) for entry in body.get("few_per_identity", ())),
    )


def _read_identity(entry: Mapping[str, Any]) -> IdentityScores:
    missing = {key: MissingFaces(**counts) for key, counts in entry["missing"].items()}
    return IdentityScores(**{**entry, "missing": missing})
