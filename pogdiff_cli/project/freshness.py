"""Why a stage is stale: what the manifest records of it against the settings and digests of today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pogdiff_cli.project.config import Config, dotted
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.lineage import StagePlan
from pogdiff_cli.project.manifest import StageRecord


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """Whether a stage is up to date; ``reasons`` says what changed, and is empty when it is."""

    key: str
    reasons: tuple[str, ...] = field(default=())

    @property
    def fresh(self) -> bool:
        """True when nothing has to be done."""
        return not self.reasons


def freshness(
    project: Project, plan: StagePlan, inputs: Mapping[str, str], upstream: Mapping[str, Freshness]
) -> Freshness:
    """Compare ``plan`` and today's ``inputs`` (name to digest) with what the manifest records."""
    waits = [key for key in plan.after if key in upstream and not upstream[key].fresh]
    record = project.manifest().record(plan.key)
    reasons = tuple(_differences(project, plan, inputs, record))
    if waits and record is not None:
        reasons += tuple(f"{key} is not up to date" for key in waits)
    return Freshness(key=plan.key, reasons=reasons)


def as_asked(record: StageRecord, plan: StagePlan, inputs: Mapping[str, str]) -> StageRecord:
    """A record in the terms of today's ``plan`` and ``inputs``.

    Older ones name the weights' folder, and neither tokenizer nor networks. A setting that came later had its default
    when they were made: with a newer pogdiff nothing is stale because of a setting that nobody has changed.
    """
    defaults = dotted(Config(), "", operational="without")
    parameters = {key: defaults[key] for key in plan.parameters if key in defaults} | record.parameters
    parameters.pop("pretrained_model_name_or_path", None)
    later = {name: inputs[name] for name in ("tokenizer", *plan.networks) if name in inputs}
    return record.model_copy(update={"parameters": parameters, "inputs": {**later, **record.inputs}})


def _differences(project: Project, plan: StagePlan, inputs: Mapping[str, str], record: StageRecord | None) -> list[str]:
    if record is None:
        return ["has not been run"]
    if record.state != "done":
        return ["did not finish"]
    before = as_asked(record, plan, inputs)
    reasons = [
        f"{key}: {_short(before.parameters.get(key))} -> {_short(plan.parameters.get(key))}"
        for key in sorted({*before.parameters, *plan.parameters})
        if before.parameters.get(key) != plan.parameters.get(key)
    ]
    reasons += [
        f"{name} changed{_where(project, plan, name)}"
        for name in sorted({*before.inputs, *inputs})
        if before.inputs.get(name) != inputs.get(name)
    ]
    for path in (*plan.outputs, *plan.extras):
        digest = project.digests.of(project.root / path)
        if digest is None and (path in plan.outputs or path in record.outputs):
            reasons.append(f"{path} is missing")
        elif digest != record.outputs.get(path):
            reasons.append(f"{path} was changed by hand")
    return reasons


def _where(project: Project, plan: StagePlan, name: str) -> str:
    """The file to look at."""
    data = project.config.data
    if name == "data":
        return f" ({data.images if data.metadata is None else data.metadata}, or an image)"
    path = plan.inputs.get(name)
    return "" if path is None else f" ({path})"


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
