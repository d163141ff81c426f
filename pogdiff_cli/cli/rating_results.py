"""How a rating page, and the answers merged from it, look on the terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape

if TYPE_CHECKING:
    from pogdiff_cli.cli.console import Display
    from pogdiff_cli.metrics.agreement import Agreement
    from pogdiff_cli.metrics.intervals import Interval
    from pogdiff_cli.metrics.ratings import HumanScores, Rater
    from pogdiff_cli.stages.context import Result
    from pogdiff_cli.stages.rate_merge import Merged

_GROUPS = ("few", "medium", "many", "all")


def show_page(display: Display, result: Result) -> None:
    """What is on the page, and what to do with it."""
    display.emit({"stages": [asdict(result)]})
    facts = result.facts
    display.line(
        f"{escape(facts['page'])}: {facts['items']} questions about {facts['identities']} identities and "
        f"{len(facts['runs'])} runs ({facts['repeats']} repeats, {facts['checks']} attention checks), "
        f"{facts['megabytes']:.1f} MB"
    )
    display.line("Give the page to raters. Then:  pogdiff rate --merge answers/*.json")


def show_merged(display: Display, merged: Merged) -> None:
    """Raters, then each run with its groups."""
    display.emit(
        {
            "stages": [asdict(result) for result in merged.results],
            "runs": {one.run: one.to_json() for one in merged.scores},
        }
    )
    first = merged.scores[0]
    _show_raters(display, first)
    # two answers have one distance: the three levels are then the same number
    levels = ("nominal",) if len(first.protocol["categories"]) == 2 else ("nominal", "ordinal", "interval")
    for one in merged.scores:
        rows = [
            (
                group,
                _mean(found.interval),
                str(found.identities),
                str(found.items),
                str(found.raters),
                _value(found.percent_agreement),
                _value(found.fleiss_kappa),
                *(_value(found.krippendorff_alpha[level]) for level in levels),
            )
            for group, found in ((group, one.groups[group]) for group in _GROUPS if group in one.groups)
        ]
        alphas = tuple(f"alpha, {level}" for level in levels)
        columns = ("group", "mean", "identities", "images", "raters", "agreement", "Fleiss' kappa", *alphas)
        display.line(f"[bold]{escape(one.run)}[/]")
        display.table("", columns, rows)
        for reason in _reasons(one):
            display.say(f"{one.run}, {reason}")
    display.line("Next:  pogdiff evaluate   counts the ratings as the metric 'human'")


def _show_raters(display: Display, scores: HumanScores) -> None:
    rows = [
        (
            rater.rater,
            str(rater.answered),
            f"{rater.checks_passed}/{rater.checks}",
            f"{rater.repeats_equal}/{rater.repeats}",
            _state(rater),
        )
        for rater in scores.raters
    ]
    display.table("", ("rater", "images", "checks passed", "repeats equal", ""), rows)
    for name, reason in scores.refused.items():
        display.say(f"{name} is not counted: {reason}.")
    if scores.superseded:
        display.say(f"A later file of the same rater replaces {', '.join(scores.superseded)}.")
    for rater in scores.raters:
        odd = {
            "unknown items": rater.unknown_items,
            "unknown answers": rater.unknown_values,
            "entries that are no answers": rater.malformed,
            "answers replaced by a later one": rater.repeated,
        }
        said = ", ".join(f"{number} {what}" for what, number in odd.items() if number)
        if said:
            display.say(f"{rater.source}: {said}.")


def _state(rater: Rater) -> str:
    if rater.passed is None:
        return "no check answered"
    if rater.passed:
        return "passed"
    return "failed, counted" if rater.included else "failed, left out"


def _mean(interval: Interval) -> str:
    if interval.value is None:
        return "n/a"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _value(agreement: Agreement) -> str:
    return "n/a" if agreement.value is None else f"{agreement.value:.3f}"


def _reasons(scores: HumanScores) -> list[str]:
    """Why a number is missing, each reason once a group."""
    found = []
    for group in _GROUPS:
        if group in scores.groups:
            one = scores.groups[group]
            coefficients = (one.percent_agreement, one.fleiss_kappa, *one.krippendorff_alpha.values())
            reasons = dict.fromkeys([one.interval.reason, *(each.reason for each in coefficients)])
            found += [f"{group}: {reason}." for reason in reasons if reason]
    return found
