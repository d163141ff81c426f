"""Two runs of one method under other seeds, simulated: how often a verdict says that something changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from test_scores import people, scored

from pogdiff_cli.metrics.compare import Comparison, compare
from pogdiff_cli.metrics.features import Array
from pogdiff_cli.metrics.scores import IdentityScores, Scores

REQUESTS = ("fid", "dino", "recall", "identity")
IMAGES = 20


@pytest.fixture(scope="module")
def thirty() -> Scores:
    """Thirty identities of the tail, thirty of the head; their values are replaced."""
    return scored(people(tails=30, heads=30), REQUESTS)


def trained(template: Scores, people: Array, draw: np.random.Generator, *, tail_gain: float = 0.0) -> Scores:
    """One run: each identity is as hard as it is, and turns out a little better or worse in every training.

    Accuracy and recall are shares of images and of photos, the distance is log-normal, all follow one ability.
    """

    def values(row: int, entry: IdentityScores) -> IdentityScores:
        gain = tail_gain if entry.shot == "few" else 0.0
        ability = 1 / (1 + np.exp(-(people[row, 0] + gain + 0.3 * draw.standard_normal())))
        return dataclasses.replace(
            entry,
            metrics={
                **entry.metrics,
                "identity": draw.binomial(IMAGES, ability) / IMAGES,
                "recall": draw.binomial(entry.train_count, 0.8 * ability) / entry.train_count,
                "similarity": 0.9 - 0.03 * (1 - ability) + 0.01 * draw.standard_normal(),
                "fid": 0.4 * np.exp(0.4 * people[row, 1] + 0.15 * draw.standard_normal() - 0.3 * ability),
            },
        )

    return dataclasses.replace(
        template, per_identity=tuple(values(row, entry) for row, entry in enumerate(template.per_identity))
    )


def comparisons(template: Scores, pairs: int, *, tail_gain: float = 0.0) -> Iterator[Comparison]:
    for seed in range(pairs):
        draw = np.random.default_rng(seed)
        people = draw.standard_normal((len(template.per_identity), 2)) * [1.5, 1.0]
        first, second = trained(template, people, draw), trained(template, people, draw, tail_gain=tail_gain)
        yield compare(first, second, resamples=1000)


def test_the_same_method_under_other_seeds_is_inconclusive_nine_times_in_ten(thirty: Scores) -> None:
    """In all groups together, though each of them may err once in twenty."""
    verdicts = [[group.verdict for group in result.groups] for result in comparisons(thirty, 120)]
    assert np.mean([set(found) == {"inconclusive"} for found in verdicts]) >= 0.9
    assert (np.mean(np.array(verdicts) == "inconclusive", axis=0) >= 0.93).all()


def test_a_planted_improvement_of_the_tail_is_found_and_the_head_is_left_alone(thirty: Scores) -> None:
    found = [{g.group: g.verdict for g in result.groups} for result in comparisons(thirty, 40, tail_gain=1.0)]
    assert np.mean([verdicts["few"] == "improved" for verdicts in found]) >= 0.95
    assert np.mean([verdicts["many"] == "inconclusive" for verdicts in found]) >= 0.9


def test_bootstrap_and_permutation_test_agree_on_what_is_clear(thirty: Scores) -> None:
    """Two judgements of one difference, by different means: p is small where the interval leaves zero."""
    (result,) = comparisons(thirty, 1, tail_gain=2.0)
    tail = result.group("few")
    assert tail is not None
    clear = [d for d in tail.differences if d.low is not None and d.low > 0]
    assert {"identity", "recall"} <= {d.metric for d in clear}
    assert all(d.p is not None and d.p < 0.05 for d in clear)
    assert all(d.p_adjusted is not None and d.p is not None and d.p_adjusted >= d.p for d in clear if d.decides)
