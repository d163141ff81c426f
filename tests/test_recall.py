"""Recall of Eq. 17 on the arithmetic of Appendix E, and its growth with N against brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pogdiff_cli.metrics.recall import Coverage, coverage, recall, recall_curve


def covering(covered: int, total: int) -> Coverage:
    """Training images along different axes; generated ones repeat the first ``covered`` of them."""
    train = np.eye(40)[:total]
    fake = np.concatenate([np.eye(40)[:covered], np.eye(40)[39:]])
    found = coverage(train, fake)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("majority", "minority", "expected"),
    [((1, 30), (0, 2), 0.0167), ((16, 30), (0, 2), 0.2667), ((18, 30), (2, 2), 0.8)],
)
def test_recall_follows_the_worked_examples_of_appendix_e(
    majority: tuple[int, int], minority: tuple[int, int], expected: float
) -> None:
    assert recall([covering(*majority), covering(*minority)]) == pytest.approx(expected, abs=5e-5)


def test_ten_images_of_two_poses_cover_both_but_of_one_pose_only_half() -> None:
    poses = np.eye(3)[:2]
    both = coverage(poses, np.repeat(poses, [6, 4], axis=0))
    one = coverage(poses, np.repeat(poses[:1], 10, axis=0))
    assert both is not None
    assert one is not None
    assert (both.share, one.share) == (1.0, 0.5)


def test_the_threshold_must_be_exceeded() -> None:
    at = coverage([[1.0, 0.0]], [[0.6, 0.8]], threshold=0.6)
    below = coverage([[1.0, 0.0]], [[0.6, 0.8]], threshold=0.59)
    assert at is not None
    assert below is not None
    assert (at.covered, below.covered) == (0, 1)


def test_no_image_generated_covers_nothing_but_no_training_image_is_undefined() -> None:
    nothing = coverage(np.ones((2, 3)), np.zeros((0, 3)))
    assert nothing is not None
    assert nothing.share == 0.0
    assert coverage(np.zeros((0, 3)), np.ones((2, 3))) is None


def test_curve_is_the_mean_over_all_subsets_of_n_images() -> None:
    rng = np.random.default_rng(0)
    train, fake = rng.standard_normal((4, 2)), rng.standard_normal((6, 2))
    curve = recall_curve(train, fake, [1, 2, 3, 6], threshold=0.8)
    for n, value in zip([1, 2, 3, 6], curve, strict=True):
        shares = [
            found.share
            for subset in combinations(range(6), n)
            if (found := coverage(train, fake[list(subset)], threshold=0.8))
        ]
        assert value == pytest.approx(np.mean(shares), abs=1e-12)
    assert 0 < curve[0] < curve[-1]
