"""The order of stages: what must come first, the whole road, and what is up to date."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.freshness import Freshness, freshness
from pogdiff_cli.project.layout import Project, Run, open_project
from pogdiff_cli.project.lineage import StagePlan, plan_run, plan_sample, plan_train
from pogdiff_cli.stages import caption, density, evaluate, index, sample, train
from pogdiff_cli.stages.context import Context, Result
from pogdiff_cli.stages.dataset import Dataset, load_dataset
from pogdiff_cli.stages.inputs import input_digests

_SHARED = {"caption": caption.run, "index": index.run, "fit-density": density.run}


def prepare_training(context: Context, run: Run) -> Iterator[Result]:
    """Bring up to date what ``train`` reads; the user need not remember the order."""
    yield from _shared(context, plan_train(context.project.config, run.name).after)


def prepare_density(context: Context) -> Iterator[Result]:
    """Captions come before their density."""
    yield from _shared(context, ("caption",))


def prepare_evaluation(context: Context, run: Run) -> Iterator[Result]:
    """Images come before their scores; training is never started on the way."""
    if context.prerequisites == "run":
        yield sample.run(context.quietly(), run)
    else:
        _refuse_stale(context, plan_sample(context.project.config, run.name), None)


def whole_road(context: Context, runs: list[str]) -> Iterator[Result]:
    """Every stage of every run that is not up to date, in order."""
    for name in runs:
        one = for_run(context, name, recorded="ignore")
        run = one.project.run(name)
        yield from prepare_training(one, run)
        yield train.run(one, run)
        yield sample.run(one, run)
        yield evaluate.run(one, run)


def run_names(project: Project) -> list[str]:
    """The runs that a project declares; one, named after the method, where it declares none."""
    return list(project.config.runs) or [project.config.train.method]


def for_run(context: Context, name: str, *, recorded: Literal["keep", "ignore"] = "keep") -> Context:
    """The context with the run's own settings: those typed now, then ``runs.NAME``, then what its training was told.

    ``ignore`` leaves out the last: what was once typed for a run that the file declares holds for that once.
    """
    declared = context.project.config.runs.get(name, {})
    record = context.project.manifest().record(f"runs/{name}/train")
    earlier = {} if record is None or recorded == "ignore" else _without_permissions(record.facts.get("overrides"))
    typed: dict[str, Any] = {**earlier, **context.overrides}
    overrides = {**earlier, **declared, **context.overrides}
    return replace(context, project=open_project(context.project.root, overrides), overrides=typed)


def _without_permissions(recorded: Any) -> dict[str, Any]:
    """What was typed when the run was trained; leave to run Python code is given by whoever types now, or by nobody."""
    typed = recorded if isinstance(recorded, dict) else {}
    return {key: value for key, value in typed.items() if "allow_python" not in f"{key} {value}"}


def last_run(project: Project) -> Run:
    """The run whose training started last."""
    trained = {name: stages["train"] for name, stages in project.manifest().runs.items() if "train" in stages}
    if not trained:
        raise PogdiffError(
            "This project has no trained run yet.", hint="Run 'pogdiff train' first.", exit_code=Exit.MISSING
        )
    return project.run(max(trained, key=lambda name: (trained[name].order, trained[name].started)))


def status(context: Context, runs: list[str]) -> list[Freshness]:
    """Each stage with the reasons why it is not up to date."""
    dataset = load_dataset(context)
    found: dict[str, Freshness] = {}
    declared = run_names(context.project)
    for name in runs:
        one = for_run(context, name, recorded="ignore" if name in declared else "keep")
        for plan in plan_run(one.project.config, name):
            if plan.key not in found:
                found[plan.key] = _freshness(one, plan, dataset, found)
    return list(found.values())


def _freshness(context: Context, plan: StagePlan, dataset: Dataset, upstream: dict[str, Freshness]) -> Freshness:
    try:
        inputs = input_digests(context, plan, dataset)
    except PogdiffError as problem:
        return Freshness(key=plan.key, reasons=(problem.message,))
    return freshness(context.project, plan, inputs, upstream)


def _shared(context: Context, keys: tuple[str, ...]) -> Iterator[Result]:
    for key in keys:
        if context.prerequisites == "run":
            yield _SHARED[key](context.quietly())
        else:
            plans = {plan.key: plan for plan in plan_run(context.project.config, "any")}
            _refuse_stale(context, plans[key], load_dataset(context))


def _refuse_stale(context: Context, plan: StagePlan, dataset: Dataset | None) -> None:
    state = freshness(context.project, plan, input_digests(context, plan, dataset), {})
    if not state.fresh:
        raise PogdiffError(
            f"'{plan.key}' is not up to date: {'; '.join(state.reasons)}.",
            hint=f"Run 'pogdiff {plan.stage}' first, or leave out --no-prerequisites.",
            exit_code=Exit.MISSING,
        )
