"""One command a stage: parse, one call, show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pogdiff_cli.cli.options import Session, make_context, set_display, sharded_stage_options, stage_options
from pogdiff_cli.cli.rate_command import rate
from pogdiff_cli.errors import Exit, PogdiffError

if TYPE_CHECKING:
    from pogdiff_cli.stages.context import Result


@click.command()
@sharded_stage_options
@click.option("--captioner", help="template, files, hf:ID, openai:MODEL or py:module:function.")
@click.pass_obj
def caption(session: Session, /, captioner: str | None, **options: Any) -> None:
    """Caption each training image under a generic name."""
    context = make_context(session, options, {"caption.captioner": captioner}, needs="caption")
    from pogdiff_cli.cli.results import show_results
    from pogdiff_cli.stages import caption as stage

    show_results(session.display, [stage.run(context)])


@click.command()
@sharded_stage_options
@click.option("--extractor", help="dlib, hf:ID#cls, timm:NAME, onnx:PATH or py:module:function.")
@click.option("-k", type=int, help="Neighbours of each image.")
@click.pass_obj
def index(session: Session, /, extractor: str | None, k: int | None, **options: Any) -> None:
    """Embed the training images and find the k nearest of each."""
    context = make_context(session, options, {"index.extractor": extractor, "index.k": k}, needs="index")
    from pogdiff_cli.cli.results import show_results
    from pogdiff_cli.stages import index as stage

    show_results(session.display, [stage.run(context)])


@click.command("fit-density")
@stage_options
@click.option("--text", help="caption or prompt: whose embedding's density counts.")
@click.pass_obj
def fit_density(session: Session, /, text: str | None, **options: Any) -> None:
    """Fit the density of the captions' embeddings."""
    context = make_context(session, options, {"density.text": text}, needs="fit-density")
    from pogdiff_cli.cli.results import show_results
    from pogdiff_cli.stages import density, road

    show_results(session.display, [*road.prepare_density(context), density.run(context)])


@click.command()
@sharded_stage_options
@click.option("--method", help="pogdiff, vanilla, cbdm or t2h.")
@click.option("--sampling", help="natural, sqrt, balanced or repeat_factor.")
@click.option("--max-train-steps", type=int, help="Optimizer steps.")
@click.option("--name", help="The run's name. Default: the method.")
@click.pass_obj
def train(
    session: Session,
    /,
    method: str | None,
    sampling: str | None,
    max_train_steps: int | None,
    name: str | None,
    **options: Any,
) -> None:
    """Fine-tune the model: one run."""
    flags = {"train.method": method, "train.sampling": sampling, "train.max_train_steps": max_train_steps}
    context = make_context(session, options, flags, needs="train", run=name)
    from pogdiff_cli.cli.results import show_results
    from pogdiff_cli.stages import road
    from pogdiff_cli.stages import train as stage

    # a run that is named goes on as it was begun; without a name the file says what is trained
    recorded: Literal["keep", "ignore"] = "keep" if name else "ignore"
    name = name or context.project.config.train.method
    context = road.for_run(context, name, recorded=recorded)
    run = context.project.run(name)
    if context.mode == "dry-run":
        from pogdiff_cli.cli.dry_run import rehearse_training

        rehearse_training(session.display, context, run)
        return
    show_results(session.display, _then(road.prepare_training(context, run), lambda: stage.run(context, run)))


@click.command()
@sharded_stage_options
@click.option("--run", "name", help="The run. Default: the last one trained.")
@click.option("--images-per-identity", type=int, help="Images of each identity.")
@click.pass_obj
def sample(session: Session, /, name: str | None, images_per_identity: int | None, **options: Any) -> None:
    """Generate images of every identity with a trained run."""
    context = make_context(session, options, {"sample.images_per_identity": images_per_identity}, needs="sample")
    from pogdiff_cli.cli.results import show_results
    from pogdiff_cli.stages import road
    from pogdiff_cli.stages import sample as stage

    run = context.project.run(name) if name else road.last_run(context.project)
    show_results(session.display, [stage.run(road.for_run(context, run.name), run)])


@click.command()
@sharded_stage_options
@click.option("--metrics", help="Comma-separated: fid,kid,prdc,dino,recall,identity,bleed,copy,judge,human.")
@click.option("--run", "name", help="The run. Default: the last one trained.")
@click.option("--baseline", help="Compare with this run.")
@click.option("--candidate", help="The run to compare. Default: --run.")
@click.option("--real-features", type=click.Path(path_type=Path), help="Score raw features (.npy) instead of a run.")
@click.option("--fake-features", type=click.Path(path_type=Path), help="The generated images' features (.npy).")
@click.pass_obj
def evaluate(
    session: Session,
    /,
    metrics: str | None,
    name: str | None,
    baseline: str | None,
    candidate: str | None,
    real_features: Path | None,
    fake_features: Path | None,
    **options: Any,
) -> int:
    """Score a run by training count, or give the verdict of one run against another."""
    wanted = tuple(part.strip() for part in metrics.split(",") if part.strip()) if metrics else None
    if real_features or fake_features:
        return _raw(session, real_features, fake_features, wanted, options)
    context = make_context(session, options, {"evaluate.metrics": wanted})
    from pogdiff_cli.cli.results import show_comparison, show_gates, show_results
    from pogdiff_cli.stages import evaluate as stage
    from pogdiff_cli.stages import road

    chosen = candidate or name or (road.last_run(context.project).name)
    results: list[Result] = []
    for each in dict.fromkeys([*([baseline] if baseline else []), chosen]):
        run = context.project.run(each)
        one = road.for_run(context, each)
        results += [*road.prepare_evaluation(one, run), stage.run(one, run)]
    show_results(session.display, results, emit="never")
    if context.mode == "dry-run":
        session.display.emit({"stages": [asdict(result) for result in results]})
        return int(Exit.OK)
    last = context.project.run(chosen)
    comparison = stage.compare_runs(context, context.project.run(baseline), last) if baseline else None
    gates = stage.gate_results(context, last, comparison)
    session.display.emit(
        {
            "stages": [asdict(result) for result in results],
            "comparison": None if comparison is None else comparison.to_json(),
            "gates": [asdict(gate) for gate in gates],
        }
    )
    if comparison is not None:
        show_comparison(session.display, comparison)
    return int(Exit.GATE if show_gates(session.display, gates) else Exit.OK)


@click.command()
@stage_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write the page.")
@click.option("--baseline", help="The run that others are compared with. Default: vanilla.")
@click.option("--paper", is_flag=True, help="Add what the paper prints, apart from what was measured here.")
@click.pass_obj
def report(session: Session, /, output: Path | None, baseline: str | None, paper: bool, **options: Any) -> None:
    """Write one page with tables, pictures and provenance."""
    context = make_context(session, options)
    from pogdiff_cli.cli.results import show_results
    from pogdiff_cli.stages import report as stage

    printed: Literal["with", "without"] = "with" if paper else "without"
    show_results(session.display, [stage.run(context, output=output, baseline=baseline, paper=printed)])


@click.command()
@sharded_stage_options
@click.pass_obj
def run(session: Session, /, **options: Any) -> None:
    """Run every stage that is not up to date, and write the report."""
    context = make_context(session, options, needs="run")
    from pogdiff_cli.cli.results import show_results
    from pogdiff_cli.stages import report as last
    from pogdiff_cli.stages import road

    stages = road.whole_road(context, road.run_names(context.project))
    show_results(session.display, _then(stages, lambda: last.run(context)))


def _then(first: Iterable[Result], last: Callable[[], Result]) -> Iterable[Result]:
    """One after another, so that each is shown as soon as it has ended."""
    yield from first
    yield last()


def _raw(
    session: Session, /, real: Path | None, fake: Path | None, wanted: tuple[str, ...] | None, options: dict[str, Any]
) -> int:
    if real is None or fake is None:
        raise PogdiffError("--real-features and --fake-features go together.", exit_code=Exit.USAGE)
    from pogdiff_cli.stages.raw_scores import score_files

    keys = ("json_output", "quiet", "verbose")
    display = set_display(session, **{key: options[key] for key in keys})
    values = score_files(real, fake, wanted or ("fid", "kid", "prdc"))
    display.emit(values)
    rows = [(key, "n/a" if value is None else f"{value:.6g}") for key, value in values.items()]
    display.table("", ("metric", "value"), rows)
    return int(Exit.OK)


COMMANDS = (caption, index, fit_density, train, sample, evaluate, rate, report, run)
