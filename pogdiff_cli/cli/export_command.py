"""The command that hands a run's weights to other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pogdiff_cli.cli.options import Session, make_context, project_options


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@project_options
@click.option("--run", "name", help="The run. Default: the last one trained.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["diffusers", "single-file", "peft", "kohya"]),
    default="diffusers",
    help="A diffusers folder (default), one safetensors file, or a LoRA's own keys.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    help="Of --format single-file.",
)
@click.option("--force", is_flag=True, help="Replace what an earlier export wrote there.")
@click.pass_obj
def export(session: Session, /, path: Path, name: str | None, kind: Any, precision: Any, **options: Any) -> None:
    """Write a run's weights, and a model card, for other programs."""
    context = make_context(session, options)
    from rich.markup import escape

    from pogdiff_cli.stages import export as stage
    from pogdiff_cli.stages import road

    run = context.project.run(name) if name else road.last_run(context.project)
    made = stage.run(road.for_run(context, run.name), run, format=kind, path=path, precision=precision)
    session.display.emit(asdict(made))
    session.display.line(f"Wrote {escape(made.path)} ({made.bytes / 1e6:.1f} MB) and {escape(made.card)}.")
