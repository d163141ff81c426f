"""Candidate minus baseline over identities and seeds, both of which are samples of what could have been."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
#: name in the results file: name in scores.json, and whether less is better
COMPARED = {
    "fid": ("fid", True),
    "similarity": ("similarity", False),
    "recall": ("recall", False),
    "identity_accuracy": ("identity", False),
}

Result = dict[str, Any]


def difference(baseline: Sequence[Result], candidate: Sequence[Result], metric: str, group: str) -> dict[str, Any]:
    """The mean of d_is = candidate - baseline (identity i, seed s), oriented so that positive is better.

    Seeds that only one of the two has, and identities without a value, are left out. The interval is None where fewer
    than two seeds are shared.
    """
    name, less_is_better = COMPARED[metric]
    first, second = _matrices(baseline, candidate, name, group)
    d = first - second if less_is_better else second - first
    low, high = interval(d) if d.shape[1] > 1 else (None, None)
    return {
        "mean": round(float(d.mean()), 6),
        "low": low,
        "high": high,
        "seeds": int(d.shape[1]),
        "identities": int(d.shape[0]),
        "baseline": round(float(first.mean()), 6),
        "candidate": round(float(second.mean()), 6),
    }


def interval(d: NDArray[np.float64], *, level: float = LEVEL) -> tuple[float, float]:
    """Student's interval of the mean of d (n identities, m seeds), both random and crossed.

    With the mean squares of rows A, columns B and residuals E, the variance of the mean is estimated by
    (A + B - E) / (n m), with Satterthwaite's degrees of freedom (Cornfield and Tukey 1956); where seeds vary less than
    the residuals let expect, by max(A, E) / (n m).
    """
    n, m = d.shape
    mean = d.mean()
    rows, columns = d.mean(axis=1, keepdims=True), d.mean(axis=0, keepdims=True)
    a = m * np.square(rows - mean).sum() / (n - 1)
    b = n * np.square(columns - mean).sum() / (m - 1)
    e = np.square(d - rows - columns + mean).sum() / ((n - 1) * (m - 1))
    variance = a + b - e
    if variance > max(a, e):
        parts = a**2 / (n - 1) + b**2 / (m - 1) + e**2 / ((n - 1) * (m - 1))
        freedom = variance**2 / parts
    else:
        variance, freedom = (a, n - 1) if a >= e else (e, (n - 1) * (m - 1))
    half = float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance / (n * m)))
    return round(float(mean) - half, 6), round(float(mean) + half, 6)


def _matrices(
    baseline: Sequence[Result], candidate: Sequence[Result], name: str, group: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    tables = [{result["seed"]: _values(result, name, group) for result in results} for results in (baseline, candidate)]
    seeds = sorted(tables[0].keys() & tables[1].keys())
    if not seeds:
        raise ValueError("no seed was run for both")
    people = sorted(set.intersection(*(set(table[seed]) for table in tables for seed in seeds)))
    first, second = (np.array([[table[seed][who] for seed in seeds] for who in people]) for table in tables)
    return first, second


def _values(result: Result, name: str, group: str) -> dict[str, float]:
    return {
        each["who"]: float(each[name])
        for each in result["identities"]
        if each["shot"] == group and each[name] is not None
    }
