"""How results of stages look on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape

from pogdiff_cli.cli.console import Display
from pogdiff_cli.report.tables import group_table, group_title

if TYPE_CHECKING:
    from pogdiff_cli.metrics.compare import Comparison, Difference
    from pogdiff_cli.metrics.gates import GateResult
    from pogdiff_cli.stages.compare import Selection
    from pogdiff_cli.stages.context import Result

_MARKS = {"done": "[green]done[/]", "up to date": "[dim]up to date[/]", "planned": "[yellow]would run[/]"}


def show_results(
    display: Display, results: Iterable[Result], *, emit: Literal["at the end", "never"] = "at the end"
) -> None:
    """One line a stage as it ends, its scores as a table; with --json everything at the end."""
    shown = []
    for result in results:
        shown.append(result)
        reasons = f" ({'; '.join(result.reasons)})" if result.state == "planned" and result.reasons else ""
        display.line(f"{escape(result.key)}: {_MARKS[result.state]}{escape(reasons)}{_brief(result)}")
        if result.key.endswith("/evaluate") and result.facts:
            _scores(display, result.facts)
    if emit == "at the end":
        display.emit({"stages": [asdict(result) for result in shown]})


def show_comparison(display: Display, comparison: Comparison) -> None:
    """A verdict for each group, and the differences behind it."""
    for group in comparison.groups:
        display.line(f"[bold]{escape(group.group)}[/] ({group.identities} identities): {escape(group.headline)}")
        rows = [
            (
                difference.label,
                _number(difference.baseline),
                _number(difference.candidate),
                _number(difference.improvement, sign=True),
                _interval(difference.low, difference.high),
                _p(difference),
                difference.outcome,
            )
            for difference in group.differences
        ]
        columns = (
            "metric",
            comparison.baseline,
            comparison.candidate,
            "better by",
            f"{100 * comparison.level:g} % interval",
            "p",
            "",
        )
        display.table("", columns, rows)
    for caution in comparison.cautions:
        display.say(caution)


def show_side_by_side(display: Display, selection: Selection) -> None:
    """A table for each group, then what can be said of each run against the first."""
    runs = selection.runs
    shown = [group for group in ("few", "medium", "many", "all") if any(group in scores.groups for scores in runs)]
    for group in shown:
        table = group_table(runs, group)
        stacked = [[cell.replace(" [", "\n[").replace(" (seeds", "\n(seeds") for cell in row] for row in table.rows]
        display.table(group_title(runs, group), table.header, stacked)
        display.line("")
    display.line("[dim]\\[low, high]: interval over identities; seeds +/-: standard error over seeds.[/]")
    for comparison in selection.comparisons:
        said = [f"{each.headline} ({each.reason})" for each in comparison.groups if each.group in shown]
        display.line(escape(f"{comparison.candidate} against {comparison.baseline}: {'; '.join(said)}"))
        for caution in comparison.cautions:
            display.say(caution)
    for reason in selection.apart:
        display.line(escape(reason))


def show_gates(display: Display, results: Sequence[GateResult]) -> bool:
    """Each gate; True where one failed."""
    for result in results:
        mark = "[green]passed[/]" if result.passed else "[bold red]failed[/]"
        why = f" ({result.reason})" if result.reason else ""
        display.line(f"gate {escape(result.name)} {escape(result.bound)}: {mark}, {escape(str(result.actual) + why)}")
    return any(not result.passed for result in results)


def _scores(display: Display, facts: Mapping[str, Any]) -> None:
    groups = [group for group in facts if isinstance(facts[group], dict)]
    if not groups:
        return
    names = [name for name in facts[groups[0]] if name != "identities"]
    rows = [(name, *(_number(facts[group].get(name)) for group in groups)) for name in names]
    columns = ("metric", *(f"{group} ({facts[group]['identities']})" for group in groups))
    display.table("", columns, rows)


def _brief(result: Result) -> str:
    if result.state != "done" or result.key.endswith("/evaluate"):
        return ""
    parts = [
        f"{key.replace('_', ' ')} {value}"
        for key, value in result.facts.items()
        if isinstance(value, (int, float, str)) and not isinstance(value, bool) and "digest" not in key
    ]
    return f"  [dim]{escape(', '.join(parts))}[/]" if parts else ""


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "n/a"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def _p(difference: Difference) -> str:
    """Adjusted by Holm where the metric may decide."""
    p = difference.p if difference.p_adjusted is None else difference.p_adjusted
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "n/a" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
