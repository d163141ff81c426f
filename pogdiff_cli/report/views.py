"""The report's content in the order and the words in which the page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pogdiff_cli.metrics.compare import PART, Comparison, Difference, GroupVerdict
from pogdiff_cli.metrics.registry import METRICS
from pogdiff_cli.metrics.scores import GroupValue
from pogdiff_cli.report.content import IdentityReport, ReportData, RunReport
from pogdiff_cli.report.numbers import MISSING, count, decimals, interval, number, p_value, share_decimals
from pogdiff_cli.report.tables import images_scored

ORDER = ("few", "medium", "many", "all")
_RANK = {group: rank for rank, group in enumerate(ORDER)}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One deciding metric of a verdict card."""

    label: str
    outcome: str
    change: str
    interval: str | None
    p: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """One group's verdict."""

    group: str
    title: str
    verdict: str
    who: str
    reason: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One comparison in plain words."""

    title: str
    lead: str
    cards: tuple[Card, ...]
    cautions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number with what is known of its error; ``note`` says why something is missing."""

    value: str
    interval: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric of one group over all runs."""

    label: str
    meaning: str
    arrow: str
    better: str
    companion: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class GroupTable:
    """One group's block in the table of metrics."""

    group: str
    title: str
    rows: tuple[MetricRow, ...]


def headline(comparison: Comparison, data: ReportData) -> Headline:
    """What was compared, on how many identities, and what came of it; the tail first."""
    by_part = [verdict for verdict in comparison.groups if verdict.group != "all"]
    shown = by_part or list(comparison.groups)
    phrases = [f"the {PART[v.group]} {_IS[v.verdict]}" for v in shown]
    title = (", ".join(phrases[:-1]) + " and " if len(phrases) > 1 else "") + phrases[-1] if phrases else ""
    total = next((v.identities for v in comparison.groups if v.group == "all"), sum(v.identities for v in shown))
    lead = (
        f"{comparison.candidate} was compared with {comparison.baseline} on {_identities(total)}, image by "
        "image under the same prompts and seeds. A group counts as changed where the "
        f"{100 * comparison.level:g} % interval of a deciding metric leaves zero and a permutation test "
        "agrees."
    )
    return Headline(
        title=f"{title[:1].upper()}{title[1:]}." if title else "Nothing to compare.",
        lead=lead,
        cards=tuple(_card(verdict, data) for verdict in comparison.groups),
        cautions=comparison.cautions,
    )


_IS = {"improved": "improved", "regressed": "got worse", "inconclusive": "shows no clear change"}


def _card(verdict: GroupVerdict, data: ReportData) -> Card:
    return Card(
        group=verdict.group,
        title=PART[verdict.group].capitalize(),
        verdict=verdict.verdict,
        who=f"{_identities(verdict.identities)}, {photos(data.identities, verdict.group)}",
        reason=verdict.reason,
        changes=tuple(_change(d) for d in verdict.differences if d.decides),
    )


def _change(difference: Difference) -> Change:
    numbers = [difference.improvement, difference.low, difference.high]
    digits = share_decimals(numbers) if METRICS[difference.metric].share else decimals(numbers)
    return Change(
        label=difference.label,
        outcome=difference.outcome,
        change=number(difference.improvement, digits, signed="+"),
        interval=interval(difference.low, difference.high, digits, signed="+"),
        p=p_value(difference.p if difference.p_adjusted is None else difference.p_adjusted),
    )


def _identities(n: int) -> str:
    return count(n, "identity", "identities")


def photos(identities: Sequence[IdentityReport], group: str) -> str:
    """Such as "2 training images each" or "8 to 30 training images"."""
    counts = [identity.train_count for identity in identities if group in ("all", identity.shot)]
    if not counts:
        return "no training image"
    low, high = min(counts), max(counts)
    return f"{count(low, 'training image')} each" if low == high else f"{low} to {count(high, 'training image')}"


def group_tables(data: ReportData) -> tuple[GroupTable, ...]:
    """All metrics of all runs side by side, one block a group, the tail first."""
    scored = [run.scores for run in data.runs]
    tables = []
    for group in ORDER:
        inside = [scores.groups[group].identities for scores in scored if scores and group in scores.groups]
        if inside:
            who = f"{_identities(max(inside))}, {photos(data.identities, group)}{_scored(data.runs, group)}"
            tables.append(GroupTable(group=group, title=who, rows=_metric_rows(data.runs, group)))
    return tuple(tables)


def _scored(runs: Sequence[RunReport], group: str) -> str:
    """Such as ", 8 generated images each scored"."""
    found = [run.scores.groups[group] for run in runs if run.scores and group in run.scores.groups]
    numbers = " or ".join(dict.fromkeys(filter(None, map(images_scored, found))))
    return f", scored on {numbers} generated images each" if numbers else ""


def _metric_rows(runs: Sequence[RunReport], group: str) -> tuple[MetricRow, ...]:
    rows = []
    for name, metric in METRICS.items():
        labels = [run.scores.metrics[name].label for run in runs if run.scores and name in run.scores.metrics]
        if not labels:
            continue
        values = [_group_value(run, group, name) for run in runs]
        numbers = [value.value for value in values if value]
        digits = share_decimals(numbers) if metric.share else decimals(numbers)
        rows.append(
            MetricRow(
                label=labels[0],
                meaning=metric.meaning,
                arrow="\N{UPWARDS ARROW}" if metric.direction == "higher" else "\N{DOWNWARDS ARROW}",
                better=f"{metric.direction} is better",
                companion=not metric.deciding,
                cells=tuple(_cell(value, digits) for value in values),
            )
        )
    return tuple(rows)


def _group_value(run: RunReport, group: str, name: str) -> GroupValue | None:
    inside = run.scores.groups.get(group) if run.scores else None
    return inside.metrics.get(name) if inside else None


def _cell(value: GroupValue | None, digits: int) -> Cell:
    if value is None or value.value is None:
        return Cell(value=MISSING, note=value.reason if value else "not computed")
    spread = (
        None if value.seed_spread is None else f"\N{PLUS-MINUS SIGN} {number(value.seed_spread, digits)} over seeds"
    )
    if value.low is not None:
        return Cell(value=number(value.value, digits), interval=interval(value.low, value.high, digits), note=spread)
    return Cell(value=number(value.value, digits), note=spread or value.reason)


def ranked(identities: Sequence[IdentityReport]) -> list[IdentityReport]:
    """Tails first, then by name."""
    return sorted(identities, key=lambda i: (_RANK[i.shot], i.train_count, i.name))
