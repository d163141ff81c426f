"""Cosine scores on vectors whose angles are known."""

from __future__ import annotations

import numpy as np
import pytest

from pogdiff_cli.metrics.features import unit_rows
from pogdiff_cli.metrics.similarity import copy_rate, mean_cosine

EAST, NORTH, NORTH_EAST = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]


def test_similarity_is_the_mean_cosine_over_pairs_whatever_the_lengths() -> None:
    expected = (1 + 0 + np.sqrt(0.5) + np.sqrt(0.5)) / 4
    assert mean_cosine([[5.0, 0.0], NORTH_EAST], [EAST, NORTH]) == pytest.approx(expected)


def test_copies_are_images_beyond_the_threshold_of_their_nearest_training_image() -> None:
    fakes = [EAST, [1.0, 0.1], NORTH_EAST, NORTH]
    assert copy_rate(fakes, [EAST], threshold=0.99) == 0.5
    assert copy_rate(fakes, [EAST, NORTH], threshold=0.99) == 0.75


def test_the_threshold_itself_is_no_copy() -> None:
    assert copy_rate([EAST], [EAST], threshold=1.0) == 0.0


@pytest.mark.parametrize("empty_is", ["fake", "real"])
def test_an_empty_set_has_no_similarity(empty_is: str) -> None:
    empty, full = np.zeros((0, 2)), np.ones((3, 2))
    fake, real = (empty, full) if empty_is == "fake" else (full, empty)
    assert mean_cosine(fake, real) is None
    assert copy_rate(fake, real, threshold=0.9) is None


def test_a_row_of_zeros_has_cosine_zero_and_no_warning() -> None:
    assert unit_rows(np.zeros((1, 3))).tolist() == [[0.0, 0.0, 0.0]]
    assert mean_cosine([[0.0, 0.0]], [EAST]) == 0.0
