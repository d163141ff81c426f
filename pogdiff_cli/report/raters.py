"""What people said of the runs, how far they agree, and how far each of them can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pogdiff_cli.metrics.agreement import Agreement
from pogdiff_cli.metrics.ratings import GroupRating, HumanScores, Rater
from pogdiff_cli.report.content import RunReport
from pogdiff_cli.report.numbers import count, interval, number

_GROUPS = ("few", "medium", "many", "all")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number, and below it what it needs to be read."""

    value: str
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class HumanRow:
    """One group of one run."""

    run: str
    group: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class RaterRow:
    """One rater."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HumanTable:
    """Runs that were rated on one page."""

    question: str
    lead: str
    rows: tuple[HumanRow, ...]
    raters: tuple[RaterRow, ...]


def human_tables(runs: Sequence[RunReport]) -> tuple[HumanTable, ...]:
    """One table a rating page; runs of different pages are not comparable."""
    pages: dict[str, list[HumanScores]] = {}
    for run in runs:
        if run.human is not None:
            pages.setdefault(run.human.page, []).append(run.human)
    return tuple(_table(scores) for scores in pages.values())


def _table(scores: Sequence[HumanScores]) -> HumanTable:
    first = scores[0]
    categories = first.protocol["categories"]
    left_out = len(first.raters) - first.included
    lead = f"{count(first.included, 'rater')}; answers from {categories[0]} to {categories[-1]}."
    if left_out:
        lead += f" {count(left_out, 'rater')} left out for failing the attention checks."
    unread = len(first.refused) + len(first.superseded)
    if unread:
        lead += f" {count(unread, 'file')} not counted: refused, or replaced by a later one of the same rater."
    return HumanTable(
        question=str(first.protocol["question"]),
        lead=lead,
        rows=tuple(
            HumanRow(run=one.run, group=group, cells=_cells(one.groups[group], ordinal=len(categories) > 2))
            for group in _GROUPS
            for one in scores
            if group in one.groups
        ),
        raters=tuple(_rater(rater) for rater in first.raters),
    )


def _cells(found: GroupRating, *, ordinal: bool) -> tuple[Cell, ...]:
    alpha = found.krippendorff_alpha["ordinal" if ordinal else "nominal"]
    mean = found.interval
    return (
        Cell(value=number(mean.value, 3), note=interval(mean.low, mean.high, 3) or "no interval"),
        Cell(value=str(found.identities)),
        Cell(value=str(found.items), note=count(found.raters, "rater")),
        _coefficient(found.percent_agreement),
        _coefficient(found.fleiss_kappa),
        _coefficient(alpha),
    )


def _coefficient(found: Agreement) -> Cell:
    return Cell(value=number(found.value, 3), note=found.reason or count(found.items, "image"))


def _rater(rater: Rater) -> RaterRow:
    state = {True: "passed", False: "failed", None: "none answered"}[rater.passed]
    return RaterRow(
        name=rater.rater,
        cells=(
            str(rater.answered),
            f"{rater.checks_passed} of {rater.checks}: {state}" if rater.checks else state,
            f"{rater.repeats_equal} of {rater.repeats}" if rater.repeats else "n/a",
            "yes" if rater.included else "no",
        ),
    )
