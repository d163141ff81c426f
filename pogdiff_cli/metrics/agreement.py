"""How far raters agree: observed, beyond chance, and with ratings missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pogdiff_cli.metrics.features import Array

Level = Literal["nominal", "ordinal", "interval"]
LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A coefficient over so many items and ratings; ``value`` is None, with the reason, where it is undefined."""

    value: float | None
    items: int
    ratings: int
    reason: str | None = None


def percent_agreement(values: npt.ArrayLike) -> Agreement:
    """Mean over items of the share of pairs of raters that agree: values (raters, items), NaN where missing.

    Items with fewer than two ratings have no pair and are left out.
    """
    counts, _ = _counts(values)
    n = counts.sum(axis=1)
    if len(n) == 0:
        return _undefined(counts, "no item has two ratings")
    pairs = (counts * (counts - 1)).sum(axis=1) / (n * (n - 1))
    return Agreement(value=float(pairs.mean()), items=len(n), ratings=int(n.sum()))


def fleiss_kappa(table: npt.ArrayLike) -> Agreement:
    """Kappa = (P - P_e) / (1 - P_e) of a table (items, categories) that counts the ratings (Fleiss 1971).

    P is the mean over items of the share of agreeing pairs, P_e = sum_j p_j^2 what chance alone would give
    with the shares p_j of the categories. Every item needs the same number of ratings. Undefined where all
    ratings are equal: chance then agrees as well, and 0 / 0 is neither agreement nor its absence.
    """
    counts: Array = np.asarray(table, dtype=np.float64)
    if counts.ndim != 2 or np.any(counts < 0) or np.any(counts != np.rint(counts)):
        raise ValueError("a table of counts (items, categories) is needed")
    each = counts.sum(axis=1)
    if len(each) == 0:
        return _undefined(counts, "no item")
    n = float(each[0])
    if np.any(each != n):
        raise ValueError("Fleiss' kappa needs the same number of ratings for every item")
    if n < 2:
        return _undefined(counts, "fewer than two ratings an item")
    observed = float(((counts * counts).sum(axis=1) - n).sum() / (len(counts) * n * (n - 1)))
    totals = counts.sum(axis=0)
    if np.count_nonzero(totals) < 2:
        return _undefined(counts, "all ratings are equal")
    chance = float((totals * totals).sum()) / (len(counts) * n) ** 2
    return Agreement(value=(observed - chance) / (1 - chance), items=len(counts), ratings=int(each.sum()))


def fleiss_table(values: npt.ArrayLike, categories: Sequence[float]) -> Array:
    """Values (raters, items), NaN where missing -> counts (items, categories) of the items that all raters rated."""
    ratings = _ratings(values)
    complete = ratings[:, ~np.isnan(ratings).any(axis=0)]
    table: Array = (complete[:, :, None] == np.asarray(categories, dtype=np.float64)).sum(axis=0).astype(np.float64)
    return table


def krippendorff_alpha(values: npt.ArrayLike, *, level: Level) -> Agreement:
    """Alpha = 1 - D_o / D_e: values (raters, items), NaN where missing (Krippendorff 2011).

    o_ck counts the ordered pairs (c, k) inside an item with m ratings, each 1 / (m - 1); n_c are its row sums,
    n their total. D_o = sum o_ck d(c, k) / n and D_e = sum n_c n_k d(c, k) / (n (n - 1)), with d = [c != k]
    (nominal), (c - k)^2 (interval), or the squared number of ratings from c to k, half of those at the two ends
    left out (ordinal). Undefined where no item has two ratings and where all ratings are equal.
    """
    counts, categories = _counts(values)
    m = counts.sum(axis=1)
    if len(m) == 0:
        return _undefined(counts, "no item has two ratings")
    weighted = counts / (m - 1)[:, None]
    coincidences = weighted.T @ counts - np.diag(weighted.sum(axis=0))  # (c, c)
    totals = counts.sum(axis=0)
    distance = _distance(categories, totals, level)
    expected = float((np.outer(totals, totals) * distance).sum())
    if expected == 0:
        return _undefined(counts, "all ratings are equal")
    observed = float((coincidences * distance).sum())
    alpha = 1 - (float(totals.sum()) - 1) * observed / expected
    return Agreement(value=alpha, items=len(m), ratings=int(m.sum()))


def _distance(categories: Array, totals: Array, level: Level) -> Array:
    """(c,) ascending -> (c, c) squared differences."""
    if level == "nominal":
        return 1.0 - np.eye(len(categories))
    # ordinal: a category's place is the number of ratings below its middle
    place = np.cumsum(totals) - totals / 2 if level == "ordinal" else categories
    difference: Array = (place[:, None] - place[None, :]) ** 2
    return difference


def _counts(values: npt.ArrayLike) -> tuple[Array, Array]:
    """Values (raters, items) -> counts (items with two ratings or more, categories) and the categories, ascending."""
    ratings = _ratings(values)
    known = ratings[~np.isnan(ratings)]
    categories: Array = np.unique(known)
    counts: Array = (ratings[:, :, None] == categories).sum(axis=0).astype(np.float64)
    kept = counts[counts.sum(axis=1) >= 2]
    used = kept.sum(axis=0) > 0
    return kept[:, used], categories[used]


def _ratings(values: npt.ArrayLike) -> Array:
    ratings: Array = np.asarray(values, dtype=np.float64)
    if ratings.ndim != 2 or np.isinf(ratings).any():
        raise ValueError("ratings (raters, items) are needed, NaN where one is missing")
    return ratings


def _undefined(counts: Array, reason: str) -> Agreement:
    return Agreement(value=None, items=len(counts), ratings=int(counts.sum()), reason=reason)
