"""The scores as a table that other programs read: CSV, Markdown, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from pogdiff_cli.metrics.registry import METRICS
from pogdiff_cli.metrics.scores import GroupValue, Scores

_GROUPS = ("few", "medium", "many", "all")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A header and rows of text, each as long as the header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def scores_table(runs: Sequence[Scores]) -> Table:
    """One row a run, group and metric, at full precision."""
    header = (
        "run",
        "method",
        "group",
        "identities",
        "metric",
        "label",
        "direction",
        "value",
        "low",
        "high",
        "n",
        "seed_spread",
        "note",
    )
    rows = [
        (
            scores.run,
            scores.method,
            group,
            str(scores.groups[group].identities),
            name,
            scores.metrics[name].label,
            scores.metrics[name].direction,
            *_cells(scores.groups[group].metrics[name]),
        )
        for scores in runs
        for group in _GROUPS
        if group in scores.groups
        for name in scores.metrics
    ]
    return Table(header=header, rows=tuple(rows))


def _cells(value: GroupValue) -> tuple[str, ...]:
    numbers = (value.value, value.low, value.high)
    spread = "" if value.seed_spread is None else repr(value.seed_spread)
    return (
        *("" if x is None else repr(x) for x in numbers),
        str(value.n),
        spread,
        value.reason or value.method or "",
    )


def identity_table(runs: Sequence[Scores]) -> Table:
    """One row a run and identity, one column a metric."""
    names = [name for name in METRICS if any(name in scores.metrics for scores in runs)]
    header = (
        "run",
        "identity",
        "name",
        "shot",
        "train_count",
        "heldout_count",
        "generated",
        "confused_with",
        *names,
    )
    rows = []
    for scores in runs:
        for entry in scores.per_identity:
            values = [entry.metrics.get(name) for name in names]
            rows.append(
                (
                    scores.run,
                    entry.identity,
                    entry.name,
                    entry.shot,
                    str(entry.train_count),
                    str(entry.heldout_count),
                    str(entry.generated),
                    entry.confused_with or "",
                    *("" if value is None else repr(value) for value in values),
                )
            )
    return Table(header=header, rows=tuple(rows))


def summary_table(runs: Sequence[Scores]) -> Table:
    """For reading: one row a group and metric, one column a run, "0.58 [0.45, 0.70]"."""
    names = [name for name in METRICS if any(name in scores.metrics for scores in runs)]
    rows = []
    for group in _GROUPS:
        for name in names:
            found = [scores.groups[group].metrics.get(name) if group in scores.groups else None for scores in runs]
            if any(found):
                label = next(scores.metrics[name].label for scores in runs if name in scores.metrics)
                rows.append((group, label, *(_readable(value) for value in found)))
    return Table(header=("group", "metric", *(scores.run for scores in runs)), rows=tuple(rows))


def _readable(value: GroupValue | None) -> str:
    if value is None or value.value is None:
        return "n/a"
    if value.low is not None and value.high is not None:
        return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
    spread = f" (seeds +/- {value.seed_spread:.3f})" if value.seed_spread is not None else ""
    return f"{value.value:.3f}{spread}"


def to_csv(table: Table) -> str:
    """RFC 4180; a cell that a spreadsheet would run as a formula gets an apostrophe in front."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow([inert(cell) for cell in table.header])
    writer.writerows([inert(cell) for cell in row] for row in table.rows)
    return buffer.getvalue()


def inert(cell: str) -> str:
    """Numbers stay numbers, negative ones too; other text starting like a formula is quoted."""
    if not cell.startswith(_FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def to_markdown(table: Table) -> str:
    """A pipe table; pipes, line breaks and HTML in names stay text."""
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    return "".join("| " + " | ".join(_plain(cell) for cell in line) + " |\n" for line in lines)


def _plain(cell: str) -> str:
    flat = " ".join(cell.split())
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    }
)


def to_latex(table: Table) -> str:
    """A tabular in the style of booktabs."""
    columns = "l" * min(2, len(table.header)) + "r" * max(0, len(table.header) - 2)
    lines = [" & ".join(cell.translate(_LATEX) for cell in row) + r" \\" for row in (table.header, *table.rows)]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"
