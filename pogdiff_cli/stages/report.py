"""``pogdiff report``: everything that the project knows, on one page."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pogdiff_cli.engine.metrics_log import read_metrics
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.compare import Comparison
from pogdiff_cli.metrics.ratings import HUMAN, read_human
from pogdiff_cli.metrics.scores import read_scores
from pogdiff_cli.project.atomic import sweep_for
from pogdiff_cli.project.integrity import damaged, refuse_damaged
from pogdiff_cli.project.layout import Run
from pogdiff_cli.project.manifest import StageRecord
from pogdiff_cli.report.content import IdentityReport, LossPoint, Picture, ProvenanceRow, ReportData, RunReport
from pogdiff_cli.report.page import render
from pogdiff_cli.report.paper import reference_tables
from pogdiff_cli.stages.caption import read_names
from pogdiff_cli.stages.compare import SCORES
from pogdiff_cli.stages.context import Context, Result, command_lock
from pogdiff_cli.stages.dataset import Dataset, groups, load_dataset
from pogdiff_cli.stages.density import inverse_density
from pogdiff_cli.stages.embedding_maps import embedding_maps
from pogdiff_cli.stages.evaluate import compare_runs, method_of, read_samples

#: Keys of ``metrics.jsonl`` that are drawn, and what the page calls them.
_LOSSES = {
    "denoise": "denoise",
    "neighbour": "neighbour",
    **{f"validation_loss_{group}": f"validation, {group}" for group in ("few", "medium", "many")},
}


def run(
    context: Context,
    *,
    output: Path | None = None,
    baseline: str | None = None,
    paper: Literal["with", "without"] = "without",
) -> Result:
    """Write ``report.html``; every trained run of the project is on it, the paper's printed tables if asked for."""
    project = context.project
    known = [project.run(name) for name in project.manifest().runs]
    _refuse_damaged(context, [item for item in known if item.folder.is_dir()])
    runs = [item for item in known if item.samples.is_dir()]
    if not runs:
        raise PogdiffError(
            "There is no run with samples to report on in manifest.yaml.",
            hint="Run 'pogdiff run' first.",
            exit_code=Exit.MISSING,
        )
    dataset = load_dataset(context)
    path = output or project.root / "report.html"
    reports = tuple(_run_report(context, item) for item in runs)
    shown = {name for report in reports if report.scores for name in report.scores.metrics}
    data = ReportData(
        project=project.root.name,
        created=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        runs=reports,
        identities=tuple(_identities(context, dataset)),
        comparisons=tuple(_comparisons(context, runs, baseline)),
        maps=() if context.mode == "dry-run" else embedding_maps(context, dataset, runs, reports),
        references=reference_tables(shown) if paper == "with" else (),
        provenance=tuple(_provenance(context)),
        settings=_settings(context),
        warnings=(*_warnings(context, dataset), *_outdated(context, dataset, runs)),
    )
    if context.mode != "dry-run":
        with command_lock(context, "report"):
            sweep_for(path)
            for page in context.track([data], "Writing the report", 1):
                render(page, path)
    state: Any = "planned" if context.mode == "dry-run" else "done"
    facts = {"report": path.name, "runs": [item.name for item in runs]}
    return Result(key="report", state=state, facts=facts)


def _refuse_damaged(context: Context, runs: Sequence[Run]) -> None:
    """The page shows what stages wrote, or nothing."""
    project = context.project
    shown = [project.names, project.density, *(path for run in runs for path in (run.samples, run.evaluation / SCORES))]
    refuse_damaged(project, [path.relative_to(project.root).as_posix() for path in shown])


def _unchanged(context: Context, path: Path) -> bool:
    """Whether a log is there and as training wrote it; a changed one is said, and left out."""
    found = damaged(context.project, [path.relative_to(context.project.root).as_posix()])
    for damage in found:
        context.say(f"{damage} The report leaves it out.")
    return not found and path.is_file()


def _outdated(context: Context, dataset: Dataset, runs: Sequence[Run]) -> list[str]:
    """Scores of other pictures or names than the page shows; said as well."""
    data = context.project.config.data
    found = []
    for run in runs:
        record = context.project.manifest().record(f"runs/{run.name}/evaluate")
        if record is not None and record.inputs.get("data", dataset.digest) != dataset.digest:
            where = data.images if data.metadata is None else data.metadata
            found.append(f"The scores of {run.name} are of other data: {where}, or an image, has changed since.")
    for text in found:
        context.say(f"{text} Type 'pogdiff run' to bring them up to date.")
    return found


def _run_report(context: Context, run: Run) -> RunReport:
    scores = run.evaluation / SCORES
    record = context.project.manifest().record(f"runs/{run.name}/train")
    exposure = run.folder / "exposure.json"
    return RunReport(
        name=run.name,
        method=method_of(context, run),
        scores=read_scores(scores) if scores.is_file() else None,
        losses=tuple(
            LossPoint(
                step=line["step"],
                parts={name: float(line[key]) for key, name in _LOSSES.items() if line.get(key) is not None},
            )
            for line in (read_metrics(run.metrics) if _unchanged(context, run.metrics) else [])
        ),
        settings={} if record is None else dict(record.parameters),
        exposure=json.loads(exposure.read_text(encoding="utf-8")) if _unchanged(context, exposure) else {},
        gallery={
            group.identity: tuple(
                Picture(source=path, seed=seed) for seed, path in zip(group.seeds, group.paths, strict=True)
            )
            for group in read_samples(run)
        },
        human=read_human(run.evaluation / HUMAN),
    )


def _identities(context: Context, dataset: Dataset) -> list[IdentityReport]:
    records = dataset.records
    names = read_names(context)
    shot = groups(context, dataset)
    counts = dataset.train_counts()
    density = _density_by_identity(context, dataset)
    reports = []
    for code, identity in enumerate(records.identity_names):
        if counts[code] == 0:
            continue
        rows = records.rows_of(code)
        train, heldout = rows[~records.heldout[rows]], rows[records.heldout[rows]]
        psi_inv, log_density = density.get(code, (None, None))
        reports.append(
            IdentityReport(
                identity=identity,
                name=names.get(identity, identity),
                shot=shot[code],  # type: ignore[arg-type]
                train_count=int(counts[code]),
                heldout_count=len(heldout),
                training=tuple(Picture(source=path) for path in dataset.paths(train)),
                heldout=tuple(Picture(source=path) for path in dataset.paths(heldout)),
                psi_inv=psi_inv,
                log_density=log_density,
            )
        )
    return reports


def _density_by_identity(context: Context, dataset: Dataset) -> dict[int, tuple[float, float]]:
    path = context.project.density / "log_density.npy"
    identity = dataset.records.identity[dataset.train_rows]
    if not path.is_file():
        return {}
    values = np.load(path, allow_pickle=False)
    if len(values) != len(identity):
        return {}
    weights = inverse_density(context.project.config, values)
    return {
        int(code): (float(weights[identity == code].mean()), float(values[identity == code].mean()))
        for code in np.unique(identity)
    }


def _comparisons(context: Context, runs: Sequence[Run], baseline: str | None) -> list[Comparison]:
    """Every scored run against the baseline: the one named, else ``vanilla``, else the first."""
    scored = [item for item in runs if (item.evaluation / "scores.json").is_file()]
    if len(scored) < 2:
        return []
    names = [item.name for item in scored]
    against = baseline if baseline in names else ("vanilla" if "vanilla" in names else names[0])
    base = scored[names.index(against)]
    return [compare_runs(context, base, item) for item in scored if item is not base]


def _provenance(context: Context) -> list[ProvenanceRow]:
    manifest = context.project.manifest()
    records: list[StageRecord] = [*manifest.stages.values()]
    records += [record for run in manifest.runs.values() for record in run.values()]
    return [
        ProvenanceRow(
            artifact=path,
            digest=digest,
            command=record.command,
            versions=", ".join(f"{name} {version}" for name, version in record.versions.items()),
            duration=f"{record.duration_seconds:.1f} s",
        )
        for record in records
        for path, digest in record.outputs.items()
    ]


def _settings(context: Context) -> dict[str, object]:
    config = context.project.config
    return {
        "model": config.pretrained_model_name_or_path,
        "seed": config.seed,
        "resolution": config.data.resolution,
        "prompt": config.sample.prompt,
        "images per identity": config.sample.images_per_identity,
        "inference steps": config.sample.num_inference_steps,
        "guidance": "the model's own" if config.sample.guidance_scale is None else config.sample.guidance_scale,
        "few": f"at most {config.data.few_at_most} training images",
        "many": f"at least {config.data.many_at_least} training images",
    }


def _warnings(context: Context, dataset: Dataset) -> list[str]:
    found = []
    if dataset.quarantined:
        found.append(f"{len(dataset.quarantined)} images could not be used and were set aside.")
    record = context.project.manifest().record("fit-density")
    if record is not None and record.facts.get("warning"):
        found.append(str(record.facts["warning"]))
    return found
