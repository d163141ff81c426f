"""``pogdiff rate --merge``: what raters exported, unblinded, into scores with their agreement."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pogdiff_cli.data.rating_answers import Export, answer_files, read_exports
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.ratings import HUMAN, HumanScores, Rater, rate_run, weigh_rater
from pogdiff_cli.metrics.scores import GROUPS
from pogdiff_cli.project.atomic import write_text
from pogdiff_cli.project.digests import digest_value
from pogdiff_cli.project.integrity import damaged
from pogdiff_cli.project.layout import Run
from pogdiff_cli.project.lineage import StagePlan
from pogdiff_cli.report.tables import Table, to_csv
from pogdiff_cli.stages.context import Context, Made, Result, perform
from pogdiff_cli.stages.rating_key import RatingKey, archived_key, key_path, read_key


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The scores of each run, and how its stage ended."""

    results: tuple[Result, ...]
    scores: tuple[HumanScores, ...]


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What all files together hold, nothing of it dropped unsaid."""

    raters: tuple[Rater, ...]
    usable: tuple[Mapping[str, int], ...]  # of the raters that are included
    refused: Mapping[str, str]
    superseded: tuple[str, ...]


def merge(context: Context, paths: Iterable[Path], *, key_file: Path | None = None) -> Merged:
    """Write ``runs/NAME/evaluation/human.json`` and ``human.csv`` of every run on the page."""
    key = read_key(key_file) if key_file else _own_key(context)
    answers = _gather(context, paths, key)
    scores = tuple(_scores(context, name, key, answers) for name in key.samples)
    results = tuple(_record(context, one, key) for one in scores)
    return Merged(results=results, scores=scores)


def _own_key(context: Context) -> RatingKey:
    """The key of the page that was written last; it cannot be made again, and a changed one would unblind wrongly."""
    path = key_path(context.project)
    key = read_key(path)
    if damaged(context.project, [path.relative_to(context.project.root).as_posix()]):
        raise PogdiffError(
            f"{path} is not the key that 'pogdiff rate' wrote: it was changed or damaged since.",
            hint="Restore it from a backup; without it answers cannot be unblinded.",
            exit_code=Exit.MISSING,
        )
    return key


def _gather(context: Context, paths: Iterable[Path], key: RatingKey) -> _Answers:
    rate = context.project.config.rate
    exports = read_exports(answer_files(paths))
    refused = dict(exports.refused)
    for export in exports.read:
        if export.page != key.page:
            earlier = archived_key(context.project, export.page)
            hint = f", whose key is {earlier.relative_to(context.project.root)} (--key)" if earlier else ""
            refused[export.source] = f"answers to another page{hint}"
    latest: dict[str, Export] = {}
    superseded = []
    # a rater's last file counts; files without a date come first
    for export in sorted((e for e in exports.read if e.page == key.page), key=lambda e: e.exported):
        name = export.rater.casefold()
        if name in latest:
            superseded.append(latest[name].source)
        latest[name] = export
    if not latest:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise PogdiffError(
            f"None of these files holds answers to the rating page ({reasons}).",
            hint="Write the page with 'pogdiff rate', and merge what raters saved from it.",
            exit_code=Exit.DATA,
        )
    weighed = [
        weigh_rater(
            export.answers,
            key.items,
            categories=key.categories,
            pass_at=rate.attention_pass,
            failed=rate.failed_raters,
            rater=export.rater,
            source=export.source,
            malformed=export.malformed,
            repeated=export.repeated,
        )
        for export in latest.values()
    ]
    return _Answers(
        raters=tuple(rater for rater, _ in weighed),
        usable=tuple(usable for rater, usable in weighed if rater.included),
        refused=refused,
        superseded=tuple(superseded),
    )


def _scores(context: Context, name: str, key: RatingKey, answers: _Answers) -> HumanScores:
    config = context.project.config
    groups, means = rate_run(
        name,
        key.items,
        answers.usable,
        categories=key.categories,
        seed=config.seed,
        resamples=config.evaluate.bootstrap,
    )
    return HumanScores(
        run=name,
        page=key.page,
        samples=key.samples[name],
        protocol=key.protocol,
        raters=answers.raters,
        refused=answers.refused,
        superseded=answers.superseded,
        groups=groups,
        per_identity=means,
    )


def _record(context: Context, scores: HumanScores, key: RatingKey) -> Result:
    config = context.project.config
    run = context.project.run(scores.run)
    body = scores.to_json()
    plan = StagePlan(
        key=f"runs/{run.name}/rate",
        parameters={
            "seed": config.seed,
            "evaluate.bootstrap": config.evaluate.bootstrap,
            "rate.attention_pass": config.rate.attention_pass,
            "rate.failed_raters": config.rate.failed_raters,
        },
        inputs={},
        outputs=tuple(f"runs/{run.name}/evaluation/{file}" for file in (HUMAN, "human.csv")),
    )
    inputs = {"answers": digest_value(body), "page": key.page, "samples": scores.samples}
    if context.project.digests.of(run.samples) != scores.samples:
        context.say(
            f"{run.name}: the samples have changed since they were rated; 'evaluate' will not count the ratings."
        )
    return perform(context, plan, inputs, lambda _: _write(run, scores))


def _write(run: Run, scores: HumanScores) -> Made:
    write_text(run.evaluation / HUMAN, json.dumps(scores.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
    rows = [(scores.run, identity, repr(value)) for identity, value in scores.per_identity.items()]
    write_text(run.evaluation / "human.csv", to_csv(Table(header=("run", "identity", "human"), rows=tuple(rows))))
    return Made(facts=_facts(scores))


def _facts(scores: HumanScores) -> dict[str, object]:
    everyone: Sequence[Rater] = scores.raters
    return {
        "raters": len(everyone),
        "failed_checks": sum(rater.passed is False for rater in everyone),
        "excluded": sum(not rater.included for rater in everyone),
        "files_refused": len(scores.refused),
        "files_superseded": len(scores.superseded),
        "human": {
            group: dataclasses.asdict(scores.groups[group].interval) for group in GROUPS if group in scores.groups
        },
    }
