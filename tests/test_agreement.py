"""Agreement of raters: worked examples from the literature, invariances, and what is undefined."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from pogdiff_cli.metrics.agreement import LEVELS, fleiss_kappa, fleiss_table, krippendorff_alpha, percent_agreement

NAN = float("nan")

#: Fourteen psychiatrists, ten subjects, five diagnoses (the worked example of Wikipedia's "Fleiss' kappa").
PSYCHIATRISTS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
#: Three coders, fifteen units, many missing (the worked example of Wikipedia's "Krippendorff's alpha").
CODERS = [
    [NAN, NAN, NAN, NAN, NAN, 3, 4, 1, 2, 1, 1, 3, 3, NAN, 3],
    [1, NAN, 2, 1, 3, 3, 4, 3, NAN, NAN, NAN, NAN, NAN, NAN, NAN],
    [NAN, NAN, 2, 1, 3, 4, 4, NAN, 2, 1, 1, 3, 3, NAN, 4],
]


def random_ratings(seed: int, *, categories: int = 4, missing: float = 0.3) -> np.ndarray:
    draw = np.random.default_rng(seed)
    values = draw.integers(1, categories + 1, size=(5, 12)).astype(float)
    values[draw.random(values.shape) < missing] = np.nan
    return values


def test_fleiss_kappa_of_the_worked_table_is_the_printed_one() -> None:
    found = fleiss_kappa(PSYCHIATRISTS)
    assert found.value == pytest.approx(0.2099307, abs=5e-8)
    assert (found.items, found.ratings, found.reason) == (10, 140, None)


def test_fleiss_kappa_is_the_rational_number_of_its_definition() -> None:
    n, items = 14, 10
    observed = sum(Fraction(c * (c - 1), n * (n - 1)) for row in PSYCHIATRISTS for c in row) / items
    chance = sum(Fraction(sum(column), n * items) ** 2 for column in zip(*PSYCHIATRISTS, strict=True))
    exact = (observed - chance) / (1 - chance)
    assert fleiss_kappa(PSYCHIATRISTS).value == pytest.approx(float(exact), rel=1e-15)


@pytest.mark.parametrize(("level", "printed"), [("nominal", 0.691), ("interval", 0.811)])
def test_krippendorffs_alpha_of_the_worked_example_is_the_printed_one(level: str, printed: float) -> None:
    found = krippendorff_alpha(CODERS, level=level)
    assert found.value == pytest.approx(printed, abs=5e-4)
    assert (found.items, found.ratings) == (12, 26)  # units with a single rating are not pairable


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_the_ratio_of_disagreements_between_pairs(seed: int, level: str) -> None:
    values = random_ratings(seed)
    units = [[v for v in column if not np.isnan(v)] for column in values.T]
    units = [unit for unit in units if len(unit) > 1]
    pooled = [v for unit in units for v in unit]

    def distance(a: float, b: float) -> Fraction:
        if level == "nominal":
            return Fraction(int(a != b))
        if level == "interval":
            return Fraction(int(a - b)) ** 2
        low, high = min(a, b), max(a, b)
        between = sum(1 for v in pooled if low <= v <= high)
        return (between - Fraction(pooled.count(low) + pooled.count(high), 2)) ** 2 if low < high else Fraction(0)

    n = len(pooled)
    within = sum(
        sum((distance(a, b) for a, b in itertools.permutations(unit, 2)), Fraction(0)) / (len(unit) - 1)
        for unit in units
    ) / Fraction(n)
    overall = sum((distance(a, b) for a, b in itertools.permutations(pooled, 2)), Fraction(0)) / (n * (n - 1))
    assert krippendorff_alpha(values, level=level).value == pytest.approx(float(1 - within / overall), rel=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_who_is_called_the_first_rater_changes_nothing(level: str) -> None:
    values = random_ratings(3)
    expected = krippendorff_alpha(values, level=level)
    for order in itertools.permutations(range(5)):
        assert krippendorff_alpha(values[list(order)], level=level) == expected
        assert percent_agreement(values[list(order)]) == percent_agreement(values)
    whole = random_ratings(3, missing=0.0)
    kappa = fleiss_kappa(fleiss_table(whole, (1, 2, 3, 4)))
    assert fleiss_kappa(fleiss_table(whole[::-1], (1, 2, 3, 4))) == kappa


def test_two_categories_make_all_levels_one() -> None:
    values = random_ratings(1, categories=2)
    nominal = krippendorff_alpha(values, level="nominal").value
    assert krippendorff_alpha(values, level="ordinal").value == pytest.approx(nominal, rel=1e-12)
    assert krippendorff_alpha(values, level="interval").value == pytest.approx(nominal, rel=1e-12)


def test_perfect_agreement_on_different_items_is_one() -> None:
    values = [[1, 2, 3, 1]] * 3
    assert [krippendorff_alpha(values, level=level).value for level in LEVELS] == [1.0, 1.0, 1.0]
    assert fleiss_kappa(fleiss_table(values, (1, 2, 3))).value == 1.0
    assert percent_agreement(values).value == 1.0


def test_two_raters_who_always_contradict_each_other_are_at_minus_one() -> None:
    values = [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert fleiss_kappa(fleiss_table(values, (0, 1))).value == pytest.approx(-1.0)
    assert percent_agreement(values).value == 0.0


def test_raters_who_all_say_the_same_of_everything_have_no_kappa_and_no_alpha() -> None:
    values = [[1, 1, 1]] * 4
    kappa = fleiss_kappa(fleiss_table(values, (0, 1)))
    assert (kappa.value, kappa.reason) == (None, "all ratings are equal")
    for level in LEVELS:
        alpha = krippendorff_alpha(values, level=level)
        assert (alpha.value, alpha.reason) == (None, "all ratings are equal")
    assert percent_agreement(values).value == 1.0


def test_without_a_pair_of_ratings_nothing_is_defined() -> None:
    lonely = [[1, NAN, NAN], [NAN, 2, NAN]]
    for found in (*(krippendorff_alpha(lonely, level=level) for level in LEVELS), percent_agreement(lonely)):
        assert (found.value, found.items, found.reason) == (None, 0, "no item has two ratings")
    assert fleiss_kappa(fleiss_table(lonely, (1, 2))).reason == "no item"
    assert fleiss_kappa([[1, 0], [0, 1]]).reason == "fewer than two ratings an item"
    assert fleiss_kappa(np.zeros((0, 2))).value is None


def test_percent_agreement_averages_pairs_over_items() -> None:
    values = [[1, 1, NAN, 2], [1, 2, 3, 2], [1, 2, NAN, NAN]]
    assert percent_agreement(values).value == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_tables_that_are_none_are_refused() -> None:
    for table in ([[2, 0], [1, 0]], [[1.5, 0.5]], [[-1, 3]], [1, 2]):
        with pytest.raises(ValueError, match=r"ratings|counts"):
            fleiss_kappa(table)
    with pytest.raises(ValueError, match="ratings"):
        krippendorff_alpha([1, 2, 3], level="nominal")
    with pytest.raises(ValueError, match="ratings"):
        percent_agreement([[float("inf"), 1.0]])
