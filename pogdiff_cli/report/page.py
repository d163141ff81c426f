"""The report: one HTML file that opens from disk, asks nobody for anything and runs no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pogdiff_cli.metrics.registry import METRICS
from pogdiff_cli.metrics.scores import Scores
from pogdiff_cli.project.atomic import write_text
from pogdiff_cli.report import curves, plots
from pogdiff_cli.report.canvas import MARKERS, RUN_COLOURS, Plot
from pogdiff_cli.report.content import ReportData, RunReport
from pogdiff_cli.report.galleries import galleries, pictures_shown
from pogdiff_cli.report.numbers import count, decimals, number, share_decimals
from pogdiff_cli.report.pictures import side_for, thumbnailer
from pogdiff_cli.report.raters import human_tables
from pogdiff_cli.report.tables import identity_table, recall_table, scores_table, summary_table, to_csv, to_latex
from pogdiff_cli.report.views import group_tables, headline, ranked

_SIGNS = {"o": "\u25cf", "s": "\u25a0", "^": "\u25b2", "D": "\u25c6", "v": "\u25bc", "P": "\u271a"}
_DECIDING_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class IdentityRow:
    """One line of the table per identity: a cell for each metric and run."""

    name: str
    shot: str
    train_count: int
    cells: tuple[str, ...]


def render(report: ReportData, path: Path) -> None:
    """Write the page; it appears whole or not at all."""
    write_text(path, render_html(report))


def render_html(report: ReportData) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("pogdiff_cli.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    environment.globals["count"] = count
    return environment.get_template("report.html.j2").render(**_context(report))


def _context(report: ReportData) -> dict[str, Any]:
    scored = [run.scores for run in report.runs if run.scores]
    names = {identity.identity: identity.name for identity in report.identities}
    run_names = [run.name for run in report.runs]
    make = thumbnailer(side_for(pictures_shown(report)))
    headlines = [headline(comparison, report) for comparison in report.comparisons]
    metrics = [name for name, metric in METRICS.items() if metric.deciding and _has(report.runs, name)]
    return {
        "report": report,
        "headlines": headlines,
        "warnings": report.warnings,
        "signs": [_SIGNS[MARKERS[index % len(MARKERS)]] for index in range(len(report.runs))],
        "colours": len(RUN_COLOURS),
        "tables": group_tables(report),
        "metric_plots": _present(plots.metric_by_group(report.runs, name) for name in metrics),
        "recall_plots": _present(curves.recall_growth(report.runs, group) for group in ("few", "all")),
        "galleries": galleries(report, make),
        "data_plots": _data_plots(report),
        "loss_plots": curves.loss_curves(report.runs),
        "exposure_plots": _present([curves.exposure(report.runs, report.identities)]),
        "maps": [
            curves.embedding_map(item, names.get(item.identity, item.identity), run_names) for item in report.maps
        ],
        "identity_columns": [METRICS[name].title for name in metrics[:_DECIDING_SHOWN]],
        "identity_rows": _identity_rows(report, metrics[:_DECIDING_SHOWN]),
        "extractors": list({info.digest: info for scores in scored for info in scores.extractors.values()}.values()),
        "faceless": _faceless(report.runs),
        "settings": _settings(report),
        "human": human_tables(report.runs),
        "downloads": _downloads(scored),
        "least": max((int(scores.settings.get("least_identities", 0)) for scores in scored), default=0),
    }


def plain(value: object) -> str:
    """A setting as text: words as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _present(found: Any) -> list[Plot]:
    return [plot for plot in found if plot is not None]


def _has(runs: Sequence[RunReport], metric: str) -> bool:
    return any(run.scores is not None and metric in run.scores.metrics for run in runs)


def _data_plots(report: ReportData) -> list[Plot]:
    if not report.identities:
        return []
    draw = (plots.label_density, plots.weight_against_count, plots.density_against_count)
    return _present(figure(report.identities) for figure in draw)


def _identity_rows(report: ReportData, metrics: Sequence[str]) -> list[IdentityRow]:
    """Values line up: one number of digits for each metric."""
    values = [_by_identity(run) for run in report.runs]
    columns = {name: [entry.get(name) for run in values for entry in run.values()] for name in metrics}
    digits = {
        name: share_decimals(column) if METRICS[name].share else decimals(column) for name, column in columns.items()
    }
    return [
        IdentityRow(
            name=identity.name,
            shot=identity.shot,
            train_count=identity.train_count,
            cells=tuple(
                number(by_identity.get(identity.identity, {}).get(name), digits[name])
                for name in metrics
                for by_identity in values
            ),
        )
        for identity in ranked(report.identities)
    ]


def _by_identity(run: RunReport) -> Mapping[str, Mapping[str, float | None]]:
    return {entry.identity: entry.metrics for entry in run.scores.per_identity} if run.scores else {}


def _faceless(runs: Sequence[RunReport]) -> list[tuple[str, str, int, int]]:
    """Run, extractor, images without a face, images scored; once where two keys name one extractor."""
    found = [
        (
            run.name,
            info.name,
            sum(e.missing[key].generated for e in run.scores.per_identity if key in e.missing),
            sum(e.generated for e in run.scores.per_identity),
        )
        for run in runs
        if run.scores
        for key, info in run.scores.extractors.items()
    ]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One setting in every run; ``differs`` marks what the runs do not share."""

    key: str
    values: tuple[str, ...]
    differs: bool


def _settings(report: ReportData) -> list[SettingRow]:
    """Training and evaluation settings side by side, those that differ first."""
    columns = [
        {
            **{str(key): plain(value) for key, value in run.settings.items()},
            **{f"evaluate.{key}": plain(value) for key, value in (run.scores.settings if run.scores else {}).items()},
        }
        for run in report.runs
    ]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [
        SettingRow(
            key=key,
            values=tuple(column.get(key, "") for column in columns),
            differs=len({column.get(key, "") for column in columns}) > 1,
        )
        for key in keys
    ]
    return sorted(rows, key=lambda row: not row.differs)


def _downloads(scored: Sequence[Scores]) -> dict[str, str]:
    """Tables for other programs, by file name."""
    if not scored:
        return {}
    files = {
        "scores.csv": to_csv(scores_table(scored)),
        "identities.csv": to_csv(identity_table(scored)),
        "recall.csv": to_csv(recall_table(scored)),
        "scores.tex": to_latex(summary_table(scored)),
    }
    return {name: _data_uri(text, "csv" if name.endswith(".csv") else "plain") for name, text in files.items()}


def _data_uri(text: str, kind: str) -> str:
    return f"data:text/{kind};charset=utf-8;base64," + base64.b64encode(text.encode()).decode("ascii")
