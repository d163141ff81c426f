"""Runs side by side as a document: CSV, Markdown, LaTeX or JSON, the paper's numbers apart from ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pogdiff_cli.metrics.compare import Comparison
from pogdiff_cli.metrics.registry import METRICS
from pogdiff_cli.metrics.scores import Scores
from pogdiff_cli.report import paper
from pogdiff_cli.report.tables import Table, scores_table, summary_table, to_csv, to_latex, to_markdown

OURS, PAPERS = "measured here", "printed in the paper"


def document(form: str, runs: Sequence[Scores], comparisons: Sequence[Comparison], *, printed: bool) -> str:
    """The whole document in one of ``FORMS``."""
    return FORMS[form](runs, comparisons, shown_metrics(runs) if printed else None)


def as_json(runs: Sequence[Scores], comparisons: Sequence[Comparison], metrics: Sequence[str] | None) -> dict[str, Any]:
    """One value a run, group and metric; comparisons; and, under a key of its own, what the paper prints."""
    table = scores_table(runs)
    return {
        "values": [
            {name: _plain(name, cell) for name, cell in zip(table.header, row, strict=True)} for row in table.rows
        ],
        "settings": {scores.run: dict(scores.settings) for scores in runs},
        "comparisons": [comparison.to_json() for comparison in comparisons],
        "paper": None
        if metrics is None
        else {
            "source": paper.SOURCE,
            "values": [
                {
                    "table": value.table,
                    "data": value.data,
                    "method": value.method,
                    "group": value.group,
                    "metric": value.metric,
                    "label": paper.TITLES[value.metric],
                    "value": value.value,
                }
                for value in paper.reference_values(metrics)
            ],
        },
    }


def shown_metrics(runs: Sequence[Scores]) -> tuple[str, ...]:
    """The metrics of any of the runs, in the registry's order."""
    return tuple(name for name in METRICS if any(name in scores.metrics for scores in runs))


_NUMBERS = ("value", "low", "high", "seed_spread")
_COUNTS = ("identities", "n")


def _plain(name: str, cell: str) -> Any:
    if name in _NUMBERS:
        return float(cell) if cell else None
    return int(cell) if name in _COUNTS else cell


def _json(runs: Sequence[Scores], comparisons: Sequence[Comparison], metrics: Sequence[str] | None) -> str:
    return json.dumps(as_json(runs, comparisons, metrics), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(runs: Sequence[Scores], comparisons: Sequence[Comparison], metrics: Sequence[str] | None) -> str:
    """One table, its first column saying whose number it is: differences and verdicts are in the other forms."""
    del comparisons
    ours = scores_table(runs)
    rows = [(OURS, *row) for row in ours.rows]
    for value in paper.reference_values(metrics) if metrics is not None else ():
        cells = {
            "run": f"{value.method} on {value.data}",
            "method": value.method,
            "group": value.group,
            "metric": value.metric,
            "label": paper.TITLES[value.metric],
            "direction": METRICS[value.metric].direction,
            "value": repr(value.value),
            "note": f"Table {value.table}; other data, models and extractors",
        }
        rows.append((PAPERS, *(cells.get(name, "") for name in ours.header)))
    return to_csv(Table(header=("source", *ours.header), rows=tuple(rows)))


def _markdown(runs: Sequence[Scores], comparisons: Sequence[Comparison], metrics: Sequence[str] | None) -> str:
    parts = [to_markdown(summary_table(runs)), _key(runs)]
    if comparisons:
        parts.append(to_markdown(_verdicts(comparisons)))
    if metrics is not None:
        parts += [f"{paper.SOURCE}. Not comparable with the table above.\n", to_markdown(paper.paper_table(metrics))]
    return "\n".join(parts)


def _latex(runs: Sequence[Scores], comparisons: Sequence[Comparison], metrics: Sequence[str] | None) -> str:
    parts = ["% " + _key(runs), to_latex(summary_table(runs))]
    if comparisons:
        parts.append(to_latex(_verdicts(comparisons)))
    if metrics is not None:
        parts += [f"% {paper.SOURCE}. Not comparable with the table above.\n", to_latex(paper.paper_table(metrics))]
    return "".join(parts)


def _key(runs: Sequence[Scores]) -> str:
    level = next((scores.settings.get("level") for scores in runs), None)
    percent = f"{100 * level:g} % " if isinstance(level, float) else ""
    return f"[low, high]: {percent}interval over identities; seeds +/-: standard error over seeds; n/a: no value.\n"


def _verdicts(comparisons: Sequence[Comparison]) -> Table:
    """One row a run and group."""
    rows = [
        (comparison.candidate, comparison.baseline, group.group, str(group.identities), group.verdict, group.reason)
        for comparison in comparisons
        for group in comparison.groups
    ]
    return Table(header=("run", "against", "group", "identities", "verdict", "reason"), rows=tuple(rows))


FORMS: Mapping[str, Callable[[Sequence[Scores], Sequence[Comparison], Sequence[str] | None], str]] = {
    "csv": _csv,
    "json": _json,
    "markdown": _markdown,
    "latex": _latex,
}
