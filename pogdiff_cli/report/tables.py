"""The scores as a table that other programs read: CSV, Markdown, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from pogdiff_cli.metrics.registry import METRICS
from pogdiff_cli.metrics.scores import GroupScores, GroupValue, Scores
from pogdiff_cli.report.numbers import decimals

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
        "images",
        "extractor",
        "digest",
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
            images_scored(scores.groups[group]),
            *_extractor(scores, name),
        )
        for scores in runs
        for group in _GROUPS
        if group in scores.groups
        for name in scores.metrics
    ]
    return Table(header=header, rows=tuple(rows))


def images_scored(group: GroupScores) -> str:
    """Generated images of each identity behind a group's numbers: "8", or "20 to 500" where they differ."""
    if group.fewest_images is None or group.most_images is None:
        return ""
    if group.fewest_images == group.most_images:
        return str(group.most_images)
    return f"{group.fewest_images} to {group.most_images}"


def _extractor(scores: Scores, metric: str) -> tuple[str, str]:
    """Name and digest of what a metric's features come from; empty where they come from raters."""
    key = scores.metrics[metric].extractor
    info = scores.extractors.get(key) if key else None
    return (info.name, info.digest) if info else ("", "")


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
    """One row a run and identity, one column a metric; a second row of the tail where it has a column of its own."""
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
        for entry in (*scores.per_identity, *scores.few_per_identity):
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
    rows = [
        (group, *row)
        for group in _GROUPS
        if any(group in s.groups for s in runs)
        for row in group_table(runs, group).rows
    ]
    return Table(header=("group", "metric", *(scores.run for scores in runs)), rows=tuple(rows))


def group_table(runs: Sequence[Scores], group: str) -> Table:
    """The rows of one group."""
    rows = []
    for name in (name for name in METRICS if any(name in scores.metrics for scores in runs)):
        found = [scores.groups[group].metrics.get(name) if group in scores.groups else None for scores in runs]
        if any(found):
            labels = dict.fromkeys(scores.metrics[name].label for scores in runs if name in scores.metrics)
            digits = max(3, decimals([value.value for value in found if value]))
            rows.append((" or ".join(labels), *(_readable(value, digits) for value in found)))
    return Table(header=("metric", *(scores.run for scores in runs)), rows=tuple(rows))


def group_title(runs: Sequence[Scores], group: str) -> str:
    """Such as "few: 10 identities, 8 images each"."""
    inside = [scores.groups[group] for scores in runs if group in scores.groups]
    identities = " or ".join(dict.fromkeys(str(found.identities) for found in inside))
    images = " or ".join(dict.fromkeys(filter(None, map(images_scored, inside))))
    return f"{group}: {identities} identities" + (f", {images} images each" if images else "")


def _readable(value: GroupValue | None, digits: int) -> str:
    if value is None or value.value is None:
        return "n/a"
    spread = "" if value.seed_spread is None else f" (seeds +/- {value.seed_spread:.{digits}f})"
    if value.low is not None and value.high is not None:
        return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]{spread}"
    return f"{value.value:.{digits}f}{spread}"


def recall_table(runs: Sequence[Scores]) -> Table:
    """Eq. 17 against the number of generated images: one row a run, group and number."""
    rows = [
        (scores.run, group, str(images), repr(share))
        for scores in runs
        for group in _GROUPS
        for images, share in scores.recall_curve.get(group, ())
    ]
    return Table(header=("run", "group", "images", "recall"), rows=tuple(rows))


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


#: A backslash could free the bar after it; "](" makes a link, or a picture that is fetched.
_MARKDOWN = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\\", "&#92;"), ("](", "]&#40;"), ("|", "\\|"))


def _plain(cell: str) -> str:
    flat = " ".join(cell.split())
    for sign, written in _MARKDOWN:
        flat = flat.replace(sign, written)
    return flat


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    }
)


def _typeset(cell: str) -> str:
    """One line; a bracket or star at its beginning would belong to the line break before it."""
    flat = " ".join(cell.split()).translate(_LATEX)
    return f"{{}}{flat}" if flat.startswith(("[", "*")) else flat


def to_latex(table: Table) -> str:
    """A tabular in the style of booktabs."""
    columns = "l" * min(2, len(table.header)) + "r" * max(0, len(table.header) - 2)
    lines = [" & ".join(map(_typeset, row)) + r" \\" for row in (table.header, *table.rows)]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"
