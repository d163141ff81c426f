"""Frequency groups."""

from __future__ import annotations

import pytest

from pogdiff_cli.data.shots import GROUPS, shots
from pogdiff_cli.errors import Exit, PogdiffError


def test_both_bounds_belong_to_their_groups() -> None:
    groups = shots([0, 1, 2, 3, 19, 20, 30], few_at_most=2, many_at_least=20)
    assert groups == ["few", "few", "few", "medium", "medium", "many", "many"]
    assert set(groups) == set(GROUPS)


def test_neighbouring_bounds_leave_no_medium_group() -> None:
    assert shots(range(5), few_at_most=2, many_at_least=3) == ["few", "few", "few", "many", "many"]


def test_overlapping_bounds_are_a_mistake_of_the_configuration() -> None:
    with pytest.raises(PogdiffError, match="few_at_most") as caught:
        shots([1], few_at_most=5, many_at_least=5)
    assert caught.value.exit_code == Exit.USAGE
