"""``pogdiff evaluate``: scores of one run by training count, and the verdict of one run against another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.data.paths import Folder, relative_path
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.columns import score_columns
from pogdiff_cli.metrics.compare import Comparison, compare
from pogdiff_cli.metrics.gates import GateResult, check_gates, parse_gates
from pogdiff_cli.metrics.inputs import ExtractorInfo, FeatureSet, IdentityFeatures, ScoreSettings
from pogdiff_cli.metrics.registry import FEATURES_OF
from pogdiff_cli.metrics.scores import Scores, read_scores
from pogdiff_cli.models.extractors import Extractor
from pogdiff_cli.project.atomic import sweep, write_text
from pogdiff_cli.project.config import EvaluateConfig
from pogdiff_cli.project.layout import Run
from pogdiff_cli.project.lineage import plan_evaluate
from pogdiff_cli.report.tables import identity_table, recall_table, scores_table, to_csv
from pogdiff_cli.stages import judge
from pogdiff_cli.stages.context import Context, Made, Result, perform
from pogdiff_cli.stages.dataset import Dataset, groups, load_dataset
from pogdiff_cli.stages.embeddings import embed, open_extractor
from pogdiff_cli.stages.human import Human, human_ratings
from pogdiff_cli.stages.inputs import input_digests
from pogdiff_cli.stages.judge_questions import plan_questions, with_cost
from pogdiff_cli.stages.sample import INDEX


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One identity's generated images."""

    identity: str
    name: str
    seeds: tuple[int, ...]
    paths: tuple[Path, ...]


def run(context: Context, run: Run) -> Result:
    """Write ``runs/NAME/evaluation/scores.json`` and ``scores.csv``."""
    config = context.project.config.evaluate
    parse_gates(config.gates)
    dataset = load_dataset(context)
    generated = read_samples(run)
    plan = plan_evaluate(context.project.config, run.name)
    inputs = input_digests(context, plan, dataset)
    result = perform(context, plan, inputs, lambda attempt: _evaluate(context, run, dataset, generated), hands="all")
    if result.state == "planned" and "judge" in config.metrics:
        return with_cost(result, plan_questions(context, dataset, generated, run))
    return result


def read_samples(run: Run) -> list[Generated]:
    """The images that ``sample`` wrote for each identity."""
    path = run.samples / INDEX
    try:
        inside = Folder(run.samples)  # a name that leaves the folder would show another file
        return [
            Generated(
                identity=str(entry["identity"]),
                name=str(entry["name"]),
                seeds=tuple(int(image["seed"]) for image in entry["images"]),
                paths=tuple(inside.regular_file(relative_path(str(image["file"]))) for image in entry["images"]),
            )
            for entry in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise PogdiffError(
            f"The run '{run.name}' has no samples: {path} is missing or damaged.",
            hint=f"Run 'pogdiff sample --run {run.name}' first.",
            exit_code=Exit.MISSING,
        ) from None


def method_of(context: Context, run: Run) -> str:
    """How a run was trained, in a few words."""
    record = context.project.manifest().record(f"runs/{run.name}/train")
    if record is None:
        return run.name
    words = [str(record.facts.get("method", run.name))]
    if record.facts.get("sampling", "natural") != "natural":
        words.append(f"{record.facts['sampling']} sampling")
    return ", ".join(words)


def compare_runs(context: Context, baseline: Run, candidate: Run) -> Comparison:
    """The verdict for each group, also written to ``runs/CANDIDATE/evaluation/comparison-BASELINE.json``."""
    config = context.project.config
    pair = [read_scores(run.evaluation / "scores.json") for run in (baseline, candidate)]
    result = compare(pair[0], pair[1], seed=config.seed, resamples=config.evaluate.bootstrap)
    path = candidate.evaluation / f"comparison-{baseline.name}.json"
    write_text(path, json.dumps(result.to_json(), indent=1, ensure_ascii=False))
    return result


def gate_results(context: Context, run: Run, comparison: Comparison | None) -> list[GateResult]:
    """The gates of ``pogdiff.yaml`` against one run's scores."""
    gates = context.project.config.evaluate.gates
    return check_gates(gates, scores=read_scores(run.evaluation / "scores.json"), comparison=comparison)


def _evaluate(context: Context, run: Run, dataset: Dataset, generated: list[Generated]) -> Made:
    config = context.project.config
    wanted = tuple(metric for metric in config.evaluate.metrics if metric in FEATURES_OF)
    extractors = {key: open_extractor(context, _spec(config.evaluate, key)) for key in _keys(wanted)}
    features = [_features(context, dataset, generated, extractor) for extractor in extractors.values()]
    if not context.world.main:
        return Made()
    sweep(run.evaluation)
    human = human_ratings(context, run)
    judged = judge.run(context, dataset, generated, run) if "judge" in config.evaluate.metrics else None
    identities = _identities(context, dataset, generated, dict(zip(extractors, features, strict=True)))
    scores = score_columns(
        identities,
        run=run.name,
        method=method_of(context, run),
        settings=_settings(context, wanted, human),
        judged=judged,
        extractors={key: ExtractorInfo(name=e.name, digest=e.digest, dim=e.dim) for key, e in extractors.items()},
        ratings=human.ratings,
        track=context.track,
    )
    write_text(run.evaluation / "scores.json", json.dumps(scores.to_json(), indent=1, ensure_ascii=False))
    write_text(run.evaluation / "scores.csv", to_csv(scores_table([scores])))
    write_text(run.evaluation / "identities.csv", to_csv(identity_table([scores])))
    if scores.recall_curve:
        write_text(run.evaluation / "recall.csv", to_csv(recall_table([scores])))
    return Made(facts=summary(scores))


def summary(scores: Scores) -> dict[str, Any]:
    """Values by group and metric: what fits on a screen and into the manifest."""
    return {
        group: {
            "identities": values.identities,
            **{name: None if v.value is None else round(v.value, 4) for name, v in values.metrics.items()},
        }
        for group, values in scores.groups.items()
        if values.identities
    }


def _settings(context: Context, wanted: tuple[str, ...], human: Human) -> ScoreSettings:
    config = context.project.config
    return ScoreSettings(
        extractor_of={metric: FEATURES_OF[metric] for metric in wanted},
        true_set=config.evaluate.true_set,
        images_per_identity=config.evaluate.images_per_identity,
        few_images_per_identity=config.evaluate.few_images_per_identity,
        recall_threshold=config.evaluate.recall_threshold,
        copy_threshold=config.evaluate.copy_threshold,
        resamples=config.evaluate.bootstrap,
        seed=config.seed,
        extra={"sample": config.sample.model_dump(mode="json"), **human.facts},
    )


def _keys(wanted: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(FEATURES_OF[metric] for metric in wanted))


def _spec(config: EvaluateConfig, key: str) -> str:
    return config.face if key == "face" else config.dino


@dataclass(frozen=True, kw_only=True)
class _Features:
    real: NDArray[np.float32]  # one row a record
    fake: dict[str, NDArray[np.float32]]  # by identity


def _features(context: Context, dataset: Dataset, generated: list[Generated], extractor: Extractor) -> _Features:
    rows = np.arange(len(dataset.records), dtype=np.int64)
    size = context.project.config.evaluate.batch_size
    label = f"Real images ({extractor.name})"
    real = embed(context, extractor, dataset.paths(rows), dataset.keys(rows), label=label, batch_size=size)
    paths = [path for group in generated for path in group.paths]
    keys = [content_key(context, path) for path in paths]
    label = f"Generated images ({extractor.name})"
    vectors = embed(context, extractor, paths, keys, label=label, batch_size=size)
    ends = np.cumsum([len(group.paths) for group in generated])
    parts = np.split(vectors, ends[:-1]) if len(ends) else []
    return _Features(real=real, fake={group.identity: part for group, part in zip(generated, parts, strict=True)})


def content_key(context: Context, path: Path) -> str:
    """What a generated image's features are cached by."""
    digest = context.project.digests.of(path)
    if digest is None:
        raise PogdiffError(f"{path} is missing.", hint="Run 'pogdiff sample' again.", exit_code=Exit.MISSING)
    return digest.removeprefix("sha256:")


def _identities(
    context: Context, dataset: Dataset, generated: list[Generated], features: dict[str, _Features]
) -> list[IdentityFeatures]:
    records = dataset.records
    shot = groups(context, dataset)
    codes = {name: code for code, name in enumerate(records.identity_names)}
    result = []
    for group in generated:
        code = codes.get(group.identity)
        if code is None:
            continue  # its images were all set aside, or it left the data after sampling
        rows = records.rows_of(code)
        train, heldout = rows[~records.heldout[rows]], rows[records.heldout[rows]]
        if len(train) == 0:
            continue
        result.append(
            IdentityFeatures(
                identity=group.identity,
                name=group.name,
                shot=shot[code],  # type: ignore[arg-type]
                train_count=len(train),
                heldout_count=len(heldout),
                seeds=group.seeds,
                features={
                    key: FeatureSet(
                        train=found.real[train].astype(np.float64),
                        heldout=found.real[heldout].astype(np.float64),
                        fake=found.fake[group.identity].astype(np.float64),
                    )
                    for key, found in features.items()
                },
            )
        )
    return result
