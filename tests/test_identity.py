"""Nearest identity centroid on three people along the axes."""

from __future__ import annotations

import numpy as np
import pytest

from pogdiff_cli.metrics.identity import centroids, identify

PEOPLE = centroids([np.array([[2.0, 0, 0]]), np.array([[0, 3.0, 0]]), np.array([[0, 0, 1.0], [0, 0, 9.0]])])


def test_each_photo_weighs_the_same_in_a_centroid_whatever_its_length() -> None:
    centre = centroids([np.array([[100.0, 0.0], [0.0, 1.0]])])
    assert centre[0] == pytest.approx([np.sqrt(0.5), np.sqrt(0.5)])


def test_accuracy_counts_images_nearest_to_their_own_centroid() -> None:
    found = identify(np.array([[1.0, 0.1, 0], [1.0, 0, 0.2], [0.1, 1.0, 0], [0, 0.9, 1.0]]), 0, PEOPLE)
    assert found is not None
    assert found.accuracy == 0.5
    assert found.total == 4


def test_margin_is_own_similarity_minus_the_nearest_other() -> None:
    found = identify(np.array([[0.8, 0.6, 0.0]]), 0, PEOPLE)
    assert found is not None
    assert found.margin == pytest.approx(0.2)
    other = identify(np.array([[0.8, 0.6, 0.0]]), 1, PEOPLE)
    assert other is not None
    assert other.margin == pytest.approx(-0.2)


def test_the_person_met_most_often_by_mistake_is_named() -> None:
    found = identify(np.array([[0, 1.0, 0], [0, 0, 1.0], [0, 0.1, 1.0], [1.0, 0, 0]]), 0, PEOPLE)
    assert found is not None
    assert found.confused_with == 2


def test_an_image_halfway_between_two_people_is_no_match() -> None:
    found = identify(np.array([[1.0, 1.0, 0.0]]), 0, PEOPLE)
    assert found is not None
    assert found.correct == 0


def test_an_identity_without_real_images_confuses_nobody() -> None:
    people = centroids([np.array([[1.0, 0]]), np.zeros((0, 2)), np.array([[0, 1.0]])])
    found = identify(np.array([[1.0, 0.2]]), 0, people)
    assert found is not None
    assert found.margin == pytest.approx((1 - 0.2) / np.hypot(1, 0.2))
    assert identify(np.array([[1.0, 0.2]]), 1, people) is None


def test_alone_in_the_set_nobody_can_be_confused() -> None:
    assert identify(np.ones((2, 2)), 0, centroids([np.ones((3, 2))])) is None
