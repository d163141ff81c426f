"""What a command needs on this machine before it starts: said without loading torch, and all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.registry import FEATURES_OF
from pogdiff_cli.models.weights import resolve_pipeline
from pogdiff_cli.project.layout import Project, open_project
from pogdiff_cli.project.lineage import plan_train

Command = Literal["caption", "index", "fit-density", "train", "rehearsal", "sample", "run"]


@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing that a stage reads: ``check()`` raises where it is not here."""

    name: str
    check: Callable[[], None]


def refuse_absent(project: Project, command: Command, *, run: str | None, overrides: Mapping[str, Any]) -> None:
    """Exit 4 with everything that is missing and the commands that fetch it."""
    problems: dict[str, PogdiffError] = {}
    for name, each in _as_runs_see_it(project, command, run, overrides):
        for need in _needs(each, command, name):
            try:
                need.check()
            except PogdiffError as problem:
                if problem.exit_code != Exit.MISSING:
                    raise
                problems.setdefault(problem.message, problem)
    if problems:
        hints = [problem.hint for problem in problems.values() if problem.hint]
        raise PogdiffError("\n".join(problems), hint="\n  ".join(hints) or None, exit_code=Exit.MISSING)


def captioner_need(project: Project) -> Need | None:
    """Of a captioner that looks at the picture: its weights, or the key of its endpoint."""
    caption = project.config.caption
    return _model_need(caption.captioner, "captioner", caption.api_key_env)


def judge_need(project: Project) -> Need | None:
    """Of the metric ``judge``: its weights or key."""
    judge = project.config.evaluate.judge
    if "judge" not in project.config.evaluate.metrics or judge.model is None:
        return None
    return _model_need(judge.model, "judge", judge.api_key_env)


def extractor_need(project: Project, spec: str) -> Need:
    """Weights and package of one extractor."""

    def check() -> None:
        from pogdiff_cli.models.extractors.presence import refuse_absent as refuse

        refuse(spec, extractor_options(project, spec))

    return Need(name=f"extractor {spec}", check=check)


def extractor_options(project: Project, spec: str) -> dict[str, Any]:
    """The options that ``extractors`` gives one extractor; paths are relative to the project."""
    configured = project.config.extractors
    options: dict[str, Any] = dict(configured.get(spec, configured.get(spec.split(":", 1)[0], {})))
    for key in ("weights", "detector", "predictor"):
        if isinstance(options.get(key), str):
            options[key] = str((project.root / options[key]).expanduser())
    return options


def scoring_extractors(project: Project) -> list[str]:
    """The extractors that the metrics ask for."""
    evaluate = project.config.evaluate
    keys = dict.fromkeys(FEATURES_OF[metric] for metric in evaluate.metrics if metric in FEATURES_OF)
    return list(dict.fromkeys(evaluate.face if key == "face" else evaluate.dino for key in keys))


def _as_runs_see_it(
    project: Project, command: Command, run: str | None, overrides: Mapping[str, Any]
) -> Iterator[tuple[str, Project]]:
    """Each run that the command would train, and the project with its settings."""
    declared, default = project.config.runs, project.config.train.method
    if command not in ("train", "rehearsal", "run"):
        yield default, project
        return
    for name in (list(declared) or [default]) if command == "run" else [run or default]:
        yield name, open_project(project.root, {**declared.get(name, {}), **overrides})


def _needs(project: Project, command: Command, run: str) -> Iterator[Need]:
    config, stages = project.config, _stages(project.config, command)
    if command not in ("caption", "index") or ("caption" in stages and not _done(project, "caption")):
        name = config.pretrained_model_name_or_path
        yield Need(name="model", check=lambda: _ignore(resolve_pipeline(name, project.root)))
    need = captioner_need(project)
    if need is not None and "caption" in stages and not _done(project, "caption"):
        yield need
    if "index" in stages and not _done(project, "index"):
        yield extractor_need(project, config.index.extractor)
    if "evaluate" in stages and not _done(project, f"runs/{run}/evaluate"):
        yield from (extractor_need(project, spec) for spec in scoring_extractors(project))


def _stages(config: Any, command: Command) -> tuple[str, ...]:
    """The stages that the command may have to run."""
    if command in ("train", "run"):
        return (*plan_train(config, "any").after, *(("evaluate",) if command == "run" else ()))
    if command == "rehearsal":
        return ()  # real steps of the model, on what there is of captions and neighbours
    return ("caption", command) if command == "fit-density" else (command,)


def _done(project: Project, stage: str) -> bool:
    """What was made once may be up to date without what made it; the stage itself will say."""
    record = project.manifest().record(stage)
    return record is not None and record.state == "done"


def _model_need(spec: str, what: str, key_variable: str | None) -> Need | None:
    kind = spec.partition(":")[0]
    if kind == "hf":
        from pogdiff_cli.models.snapshots import refuse_without_weights

        return Need(name=f"{what} {spec}", check=lambda: refuse_without_weights(spec, what))
    if kind == "openai" and key_variable is not None:
        from pogdiff_cli.models.endpoint import read_key

        return Need(name=f"{what} {spec}", check=lambda: _ignore(read_key(key_variable)))
    return None


def _ignore(value: object) -> None:
    del value
