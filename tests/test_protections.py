"""The table of protections fits the source, leaves no promise out, and a check of it can tell good from bad."""

from __future__ import annotations

from dataclasses import replace

import pytest
from protections import PROMISES, PROTECTIONS
from without_protection import removal_problem, unknown_tests, without

QUICK = next(one for one in PROTECTIONS if one.what == "wrong ending: noted")


def test_every_promise_has_protections_and_every_protection_is_named_once() -> None:
    assert {one.promise for one in PROTECTIONS} == set(PROMISES)
    names = [(one.promise, one.what) for one in PROTECTIONS]
    assert len(set(names)) == len(names)
    assert all(one.tests and one.old != one.new for one in PROTECTIONS)


@pytest.mark.parametrize("protection", PROTECTIONS, ids=[f"{one.promise}: {one.what}" for one in PROTECTIONS])
def test_a_protection_stands_in_the_source_and_its_tests_are_there(protection: object) -> None:
    assert removal_problem(protection) == ""  # type: ignore[arg-type]
    assert unknown_tests(protection) == []  # type: ignore[arg-type]


def test_taking_one_away_makes_its_test_fail_and_leaves_the_source_alone() -> None:
    found = without(QUICK)
    assert found.problem == ""
    assert found.failed == QUICK.tests
    assert removal_problem(QUICK) == ""


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"old": "this stands nowhere"}, "stands 0 times"),
        ({"file": "data/nowhere.py"}, "there is no"),
        ({"tests": ("test_images.py::test_that_nobody_wrote",)}, "no test"),
        pytest.param({"new": QUICK.old}, "every named test passes", marks=pytest.mark.slow),
        ({"new": "    if this does not parse\n"}, "did not run"),
    ],
)
def test_a_table_that_no_longer_fits_is_said_so(change: dict[str, object], problem: str) -> None:
    assert problem in without(replace(QUICK, **change)).problem


@pytest.mark.slow
@pytest.mark.parametrize("protection", PROTECTIONS, ids=[f"{one.promise}: {one.what}" for one in PROTECTIONS])
def test_without_a_protection_a_test_fails(protection: object) -> None:
    found = without(protection)  # type: ignore[arg-type]
    assert found.problem == ""
    assert found.failed
