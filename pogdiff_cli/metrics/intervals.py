"""How sure a mean over identities is. The unit is the identity: its images are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from pogdiff_cli.metrics.features import Array

LEAST_IDENTITIES = 10  # fewer make a bootstrap interval that is too narrow to be honest
METHOD = "bootstrap over identities"
_EXACT_UP_TO = 14  # 2^14 sign patterns are enumerated; beyond that they are drawn
_DRAWS = 20_000
_ENTRIES = 4_000_000  # of a matrix of draws held at once


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over n identities; low and high are None, with the reason, where no honest interval exists."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean over identities of candidate minus baseline, and two independent judgements of it."""

    interval: Interval
    p: float | None  # two-sided sign-flip permutation test
    differences: tuple[float, ...]


def bootstrap_mean(
    values: Sequence[float] | Array,
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 4000,
    least: int = LEAST_IDENTITIES,
) -> Interval:
    """Interval of the mean of values (n,), identities drawn with replacement; none where n < ``least``."""
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    if n == 0:
        return Interval(value=None, low=None, high=None, n=0, method=None, reason="no identity has a value")
    mean = float(data.mean())
    if n < least:
        return Interval(value=mean, low=None, high=None, n=n, method=None, reason=too_few(n, least))
    low, high = percentiles(data, seed=seed, level=level, resamples=resamples)
    return Interval(value=mean, low=float(low), high=float(high), n=n, method=METHOD, reason=None)


def percentiles(values: Array, *, seed: int, level: float, resamples: int) -> Array:
    """Expanded percentile intervals of means: values (..., n) -> (2, ...), the same draws for every row.

    The plain percentile interval is too narrow for small n: its tail mass alpha / 2 is replaced by
    Phi(sqrt(n / (n - 1)) t_{n-1}(alpha / 2)) (Hesterberg 2015), which gives Student's width where the data
    are normal and keeps the bootstrap's asymmetry where they are not.
    """
    n = values.shape[-1]
    tail = float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1)))
    means = _resampled_means(values, seed=seed, resamples=resamples)
    bounds: Array = np.quantile(means, [tail, 1 - tail], axis=-1)
    return bounds


def too_few(n: int, least: int = LEAST_IDENTITIES) -> str:
    """Why there is no interval, in the words that a reader of the report sees."""
    noun = "identity" if n == 1 else "identities"
    return f"{n} {noun}, fewer than {least}: see the values per identity and the spread over seeds"


def paired_difference(
    baseline: Sequence[float] | Array,
    candidate: Sequence[float] | Array,
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 4000,
    least: int = LEAST_IDENTITIES,
) -> PairedDifference:
    """d_i = candidate_i - baseline_i, both (n,) over the same identities -> mean, interval and p."""
    first, second = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must match: {first.shape} and {second.shape}")
    difference = second - first
    return PairedDifference(
        interval=bootstrap_mean(difference, seed=seed, level=level, resamples=resamples, least=least),
        p=sign_flip_p(difference, seed=seed) if len(difference) else None,
        differences=tuple(float(value) for value in difference),
    )


def sign_flip_p(differences: Sequence[float] | Array, *, seed: int) -> float:
    """Two-sided p of mean(d) = 0 under sign flips of d (n,): exact for n <= 14, else 20,000 draws.

    Drawn patterns count the observed one too, (b + 1) / (draws + 1), so that p is never 0.
    """
    data = np.asarray(differences, dtype=np.float64)
    n = len(data)
    observed = abs(float(data.sum()))
    slack = 1e-12 * float(np.abs(data).sum())  # equal sums must count as equal whatever their rounding
    if n <= _EXACT_UP_TO:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1  # (2^n, n)
        sums = (1.0 - 2.0 * bits) @ data
        return float(np.mean(np.abs(sums) >= observed - slack))
    sums = data.sum() - 2.0 * (_coins(_DRAWS, n, seed=seed) @ data)
    return float((np.sum(np.abs(sums) >= observed - slack) + 1) / (_DRAWS + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment: the chance of any false finding among k tests stays at the level of one."""
    k = len(p_values)
    adjusted = [0.0] * k
    highest = 0.0
    for rank, index in enumerate(sorted(range(k), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (k - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def jackknife_spread(leave_out: Sequence[float]) -> float | None:
    """sqrt((G - 1) / G sum (v - mean)^2): standard error from G leave-one-fold-out values."""
    values = np.asarray(leave_out, dtype=np.float64)
    if len(values) < 2:
        return None
    return float(np.sqrt((len(values) - 1) * values.var()))


def _resampled_means(values: Array, *, seed: int, resamples: int) -> Array:
    """(..., n) -> (..., resamples) means of n values drawn with replacement."""
    n = values.shape[-1]
    draw = np.random.default_rng(seed)
    means = np.empty((*values.shape[:-1], resamples))
    block = max(1, _ENTRIES // n)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = draw.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)  # each value's part in each mean
        means[..., start : start + size] = values @ (times.T / n)
    return means


def _coins(rows: int, n: int, *, seed: int) -> npt.NDArray[np.float64]:
    """(rows, n) of zeros and ones."""
    columns = -(-n // 8)
    drawn = np.frombuffer(np.random.default_rng(seed).bytes(rows * columns), dtype=np.uint8)
    return np.unpackbits(drawn.reshape(rows, columns), axis=1)[:, :n].astype(np.float64)
