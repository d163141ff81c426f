"""What the study found: ``docs/results/faces.json``, and tables in ``docs/results/README.md`` between marks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, ROOT, machine, versions
from benchmarks.study.differences import COMPARED, Result, difference
from benchmarks.study.grid import BASELINES, CANDIDATE, REGIMES
from benchmarks.study.runs import FILED, filed
from benchmarks.study.table import mean

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
GROUPS = ("few", "many")
#: column of the tables: name in scores.json, digits
COLUMNS = {
    "FID": ("fid", 3),
    "similarity": ("similarity", 3),
    "recall": ("recall", 3),
    "identity accuracy": ("identity", 3),
    "unbiased mean gap": ("mean_gap_unbiased", 3),
    "bleed margin": ("bleed", 4),
    "copy rate": ("copy", 3),
}


def write(folder: Path = RESULTS, source: Path = FILED) -> Path:
    """Make both anew from the filed results."""
    found = {regime: _by_condition(filed(source / f"{regime}-final.jsonl")) for regime in REGIMES}
    found = {regime: conditions for regime, conditions in found.items() if conditions}
    content: dict[str, Any] = {
        "command": "python -m benchmarks.study run && python -m benchmarks.study page",
        "machine": {name: value for name, value in machine().items() if name != "load"},
        "versions": versions(),
        "interval": "95 % of the mean over identities and seeds, both random and crossed; positive: pogdiff is better",
        "regimes": {regime: _differences(conditions) for regime, conditions in found.items()},
    }
    main = next(iter(REGIMES))
    content |= content["regimes"].get(main, {})
    path = folder / "faces.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    page = folder / "README.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN, 1)
    text = "\n".join(section(regime, conditions) for regime, conditions in found.items())
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def section(regime: str, conditions: Mapping[str, Sequence[Result]]) -> str:
    """The regime's tables: what each condition reached, and the candidate against each baseline."""
    lines = [f"### {regime}", "", f"{REGIMES[regime].what[0].upper()}{REGIMES[regime].what[1:]}.", ""]
    for group in GROUPS:
        lines += [f"Identities of the group `{group}`; means over seeds and identities:", ""]
        lines += _row("condition", "seeds", *COLUMNS), _row(*["---"] * (len(COLUMNS) + 2))
        for condition, results in conditions.items():
            values = [f"{mean(results, name, group):.{digits}f}" for name, digits in COLUMNS.values()]
            lines.append(_row(condition, str(len(results)), *values))
        lines.append("")
    lines += [f"`{CANDIDATE}` minus each baseline, positive is better, with 95 % intervals:", ""]
    lines += _row("group", "baseline", "seeds", *COMPARED), _row(*["---"] * (len(COMPARED) + 3))
    for group, baselines in _differences(conditions).items():
        for baseline, metrics in baselines.items():
            seeds = str(next(iter(metrics.values()))["seeds"])
            lines.append(_row(group, baseline, seeds, *(_signed(value) for value in metrics.values())))
    return "\n".join([*lines, ""])


def _differences(conditions: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, dict[str, Any]]]:
    if CANDIDATE not in conditions:
        return {}
    return {
        group: {
            baseline: {
                metric: difference(conditions[baseline], conditions[CANDIDATE], metric, group) for metric in COMPARED
            }
            for baseline in BASELINES
            if baseline in conditions
        }
        for group in GROUPS
    }


def _by_condition(results: Sequence[Result]) -> dict[str, list[Result]]:
    """In the order of filing; of a job that was filed twice the last."""
    last = {(result["condition"], result["seed"]): result for result in results}
    found: dict[str, list[Result]] = {}
    for result in last.values():
        found.setdefault(result["condition"], []).append(result)
    return found


def _signed(value: Mapping[str, Any]) -> str:
    if value["low"] is None:
        return f"{value['mean']:+.3f}"
    return f"{value['mean']:+.3f} ({value['low']:+.3f} to {value['high']:+.3f})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
