"""From raters' answers to scores: who paid attention, what they said of each run, how far they agree.

The JSON of ``HumanScores`` (``human.json``) is that of the dataclasses below, with ``"schema"`` on top. A null
number always has its reason beside it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.agreement import (
    LEVELS,
    Agreement,
    fleiss_kappa,
    fleiss_table,
    krippendorff_alpha,
    percent_agreement,
)
from pogdiff_cli.metrics.features import Array
from pogdiff_cli.metrics.intervals import LEAST_IDENTITIES, Interval, bootstrap_mean
from pogdiff_cli.metrics.scores import GROUPS

SCHEMA = "pogdiff.human/1"
HUMAN = "human.json"
Kind = Literal["image", "repeat", "check"]


@dataclass(frozen=True, kw_only=True)
class RatedItem:
    """What stands behind an item's id: a generated image, its second showing, or a check with a known answer."""

    kind: Kind
    run: str = ""
    identity: str = ""
    shot: str = ""
    of: str = ""  # repeat: the id of the first showing
    accept: tuple[int, ...] = ()  # check: the answers of someone who looks


@dataclass(frozen=True, kw_only=True)
class Rater:
    """One rater: what was answered, and with how much attention."""

    rater: str
    source: str
    answered: int  # of the generated images
    checks: int
    checks_passed: int
    passed: bool | None  # None: no check was answered
    included: bool
    repeats: int
    repeats_equal: int
    unknown_items: int
    unknown_values: int
    malformed: int
    repeated: int


@dataclass(frozen=True, kw_only=True)
class GroupRating:
    """One frequency group of one run: raters are averaged per image, images per identity."""

    interval: Interval
    identities: int
    items: int
    ratings: int
    raters: int
    percent_agreement: Agreement
    fleiss_kappa: Agreement  # over the images that all these raters rated
    krippendorff_alpha: Mapping[str, Agreement]  # nominal, ordinal, interval


@dataclass(frozen=True, kw_only=True)
class HumanScores:
    """What raters said of one run."""

    run: str
    page: str
    samples: str  # digest of the images that were rated
    protocol: Mapping[str, Any]
    raters: tuple[Rater, ...]
    refused: Mapping[str, str]  # file name -> why
    superseded: tuple[str, ...]  # earlier files of a rater who sent several
    groups: Mapping[str, GroupRating]
    per_identity: Mapping[str, float]

    @property
    def included(self) -> int:
        """How many raters are counted."""
        return sum(rater.included for rater in self.raters)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def weigh_rater(
    answers: Mapping[str, int],
    items: Mapping[str, RatedItem],
    *,
    categories: Sequence[int],
    pass_at: float,
    failed: Literal["keep", "exclude"],
    **origin: Any,
) -> tuple[Rater, Mapping[str, int]]:
    """One rater's record, and the answers that can be used: known items, known values."""
    usable = {key: value for key, value in answers.items() if key in items and value in categories}
    unknown = sum(1 for key in answers if key not in items)
    checks = [key for key in usable if items[key].kind == "check"]
    right = sum(usable[key] in items[key].accept for key in checks)
    pairs = [(usable[key], usable[items[key].of]) for key in usable if items[key].of in usable]
    passed = right >= pass_at * len(checks) if checks else None
    rater = Rater(
        **origin,
        answered=sum(1 for key in usable if items[key].kind == "image"),
        checks=len(checks),
        checks_passed=right,
        passed=passed,
        included=failed == "keep" or passed is not False,
        repeats=len(pairs),
        repeats_equal=sum(first == second for first, second in pairs),
        unknown_items=unknown,
        unknown_values=len(answers) - unknown - len(usable),
    )
    return rater, usable


def rate_run(
    run: str,
    items: Mapping[str, RatedItem],
    answers: Sequence[Mapping[str, int]],
    *,
    categories: Sequence[int],
    seed: int,
    resamples: int,
) -> tuple[Mapping[str, GroupRating], Mapping[str, float]]:
    """Groups, and means by identity, of one run; ``answers`` holds those of each included rater."""
    own = {key: item for key, item in items.items() if item.kind == "image" and item.run == run}
    groups: dict[str, GroupRating] = {}
    for group in GROUPS:
        inside = [key for key, item in own.items() if group in ("all", item.shot)]
        if inside:
            values = _matrix(inside, answers)
            means = _identity_means(inside, own, values)
            interval = bootstrap_mean(list(means.values()), seed=seed, resamples=resamples)
            groups[group] = _group(_explained(interval), len(means), values, categories)
    keys = list(own)
    return groups, _identity_means(keys, own, _matrix(keys, answers))


def read_human(path: Path) -> HumanScores | None:
    """The ratings in ``human.json``; None where nobody has rated."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        return HumanScores(
            **{
                **body,
                "raters": tuple(Rater(**rater) for rater in body["raters"]),
                "superseded": tuple(body["superseded"]),
                "groups": {str(group): _read_group(entry) for group, entry in body["groups"].items()},
                "per_identity": {str(key): float(value) for key, value in body["per_identity"].items()},
            }
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PogdiffError(
            f"{path} holds no ratings: {error}.",
            hint="Merge the answers again: pogdiff rate --merge FILES.",
            exit_code=Exit.MISSING,
        ) from error


def _read_group(entry: Mapping[str, Any]) -> GroupRating:
    return GroupRating(
        **{
            **entry,
            "interval": Interval(**entry["interval"]),
            "percent_agreement": Agreement(**entry["percent_agreement"]),
            "fleiss_kappa": Agreement(**entry["fleiss_kappa"]),
            "krippendorff_alpha": {level: Agreement(**entry["krippendorff_alpha"][level]) for level in LEVELS},
        }
    )


def _matrix(keys: Sequence[str], answers: Iterable[Mapping[str, int]]) -> Array:
    """(raters with an answer to one of the items, items), NaN where there is none."""
    rows = [[float(given[key]) if key in given else np.nan for key in keys] for given in answers]
    found = [row for row in rows if not all(np.isnan(row))]
    return np.asarray(found, dtype=np.float64).reshape(len(found), len(keys))


def _identity_means(keys: Sequence[str], items: Mapping[str, RatedItem], values: Array) -> dict[str, float]:
    """Raters are averaged per image, images per identity."""
    by_identity: dict[str, list[float]] = {}
    for column, key in enumerate(keys):
        given = values[:, column]
        given = given[~np.isnan(given)]
        if len(given):
            by_identity.setdefault(items[key].identity, []).append(float(given.mean()))
    return {identity: float(np.mean(means)) for identity, means in by_identity.items()}


def _explained(interval: Interval) -> Interval:
    """Raters have no seeds whose spread could stand in for an interval."""
    if interval.value is None or interval.low is not None:
        return interval
    reason = f"{interval.n} of at least {LEAST_IDENTITIES} identities: see the values per identity"
    return dataclasses.replace(interval, reason=reason)


def _group(interval: Interval, identities: int, values: Array, categories: Sequence[int]) -> GroupRating:
    rated = ~np.isnan(values)
    table = fleiss_table(values, categories)
    return GroupRating(
        interval=interval,
        identities=identities,
        items=int(rated.any(axis=0).sum()),
        ratings=int(rated.sum()),
        raters=len(values),
        percent_agreement=percent_agreement(values),
        fleiss_kappa=fleiss_kappa(table),
        krippendorff_alpha={level: krippendorff_alpha(values, level=level) for level in LEVELS},
    )
