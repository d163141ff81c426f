"""The numbers printed in the paper, as reference rows: labelled as the paper's, never counted with our own."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pogdiff_cli.report.content import ReferenceTable
from pogdiff_cli.report.tables import Table

#: What the paper calls its metrics, under the names of ours.
TITLES = {
    "fid": "FID",
    "similarity": "DINO score",
    "recall": "Recall",
    "human": "Human score",
    "judge": "GPT-4o score",
}
SOURCE = (
    "Tables 1 to 11 of the paper: its own feature extractors and raters; 100 images per identity (20 for its large "
    "sets) in the columns all, 500 in the columns few; no intervals"
)
_DATA = "paper_tables.json"


@dataclass(frozen=True, kw_only=True)
class PaperValue:
    """One printed number."""

    table: int
    metric: str
    dataset: str
    size: str
    group: str  # all or few
    method: str
    value: float

    @property
    def data(self) -> str:
        """As the paper's Sec. 4.1 abbreviates it: AgeDB-IT2I-S."""
        return f"{self.dataset}-{self.size[0].upper()}"


@functools.lru_cache(maxsize=1)
def printed() -> tuple[PaperValue, ...]:
    """Every number of Tables 1 to 11 as it stands there; later tables repeat numbers of earlier ones."""
    text = importlib.resources.files("pogdiff_cli.report").joinpath(_DATA).read_text(encoding="utf-8")
    return tuple(
        PaperValue(
            table=table["table"], metric=metric, dataset=dataset, size=size, group=group, method=method, value=value
        )
        for table in json.loads(text)["tables"]
        for method, values in table["rows"].items()
        for (metric, dataset, size, group), value in zip(table["columns"], values, strict=True)
    )


def reference_values(metrics: Collection[str]) -> tuple[PaperValue, ...]:
    """Each printed number once, from the first table that has it; of these metrics, or of all where none is printed."""
    known = set(metrics) & TITLES.keys() or TITLES.keys()
    found: dict[Any, PaperValue] = {}
    for value in printed():
        if value.metric in known:
            found.setdefault((value.metric, value.data, value.group, value.method), value)
    return tuple(found.values())


def paper_table(metrics: Collection[str]) -> Table:
    """For reading: one row a data set and method, two columns a metric."""
    values = reference_values(metrics)
    columns = [(name, group) for name in TITLES if any(v.metric == name for v in values) for group in ("few", "all")]
    found = {(v.data, v.method, v.metric, v.group): v for v in values}
    rows = [
        (data, method, *(_printed(found.get((data, method, *column))) for column in columns))
        for data, method in dict.fromkeys((v.data, v.method) for v in values)
    ]
    header = ("data (paper)", "method (paper)", *(f"{TITLES[name]} {group}" for name, group in columns))
    order = list(dict.fromkeys(v.data for v in values))
    return Table(header=header, rows=tuple(sorted(rows, key=lambda row: order.index(row[0]))))


def reference_tables(metrics: Collection[str]) -> tuple[ReferenceTable, ...]:
    """The same for the report's page."""
    table = paper_table(metrics)
    title = "The paper's printed numbers"
    return (ReferenceTable(title=title, source=SOURCE, columns=table.header, rows=table.rows),)


def _printed(value: PaperValue | None) -> str:
    """With as many digits as the paper prints."""
    if value is None:
        return ""
    return f"{value.value:.3f}" if value.metric == "recall" else f"{value.value:.2f}"
