"""Commands about a project as a whole: init, inspect, status, doctor, gc, completion."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from pogdiff_cli.cli.gc_command import gc
from pogdiff_cli.cli.options import Session, make_context, output_options, project_options, set_display
from pogdiff_cli.errors import Exit, PogdiffError


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--template",
    help="faces (default: real photos, nothing else needed), sd15, sdxl, sd3, flux, or a set of the paper.",
)
@click.option("--images", type=click.Path(path_type=Path), help="A folder per identity, or one with a metadata file.")
@click.option(
    "--seed", type=click.IntRange(0), help="Which identities and images a set of the paper draws. Default: 0."
)
@output_options
@click.pass_obj
def init(
    session: Session, /, path: Path, template: str | None, images: Path | None, seed: int | None, **options: Any
) -> None:
    """Make a project."""
    display = set_display(session, **options)
    from rich.markup import escape

    from pogdiff_cli.stages import init as stage

    made = stage.run(path, template=template, images=images, seed=seed, track=display.track)
    display.emit({**asdict(made), "root": str(made.root)})
    seen = f"{made.images} images of {made.identities} identities" if made.images else "no images yet"
    display.line(f"Made [bold]{escape(str(path))}[/] from the template '{made.template}': {seen}.")
    where = escape(shlex.quote(str(path)))
    if not made.images:
        display.line(f"Put a folder of pictures per identity into {where}/data/images, then:")
    display.line(f"Next:  pogdiff inspect -C {where}   then   pogdiff run -C {where}")


@click.command()
@project_options
@click.pass_obj
def inspect(session: Session, /, **options: Any) -> None:
    """Show the long tail of the data and what is wrong with it."""
    context = make_context(session, options)
    from rich.markup import escape

    from pogdiff_cli.stages import inspect as stage

    facts = stage.run(context)
    display = session.display
    display.emit(facts)
    counts = facts["counts"]
    groups = {group: sum(1 for row in counts if row["group"] == group) for group in ("many", "medium", "few")}
    rows = [
        ("training images", str(facts["train_images"])),
        ("held-out images", str(facts["heldout_images"])),
        ("identities", ", ".join(f"{number} {group}" for group, number in groups.items() if number)),
        ("largest / smallest", f"{counts[0]['train']} / {counts[-1]['train']}" if counts else "n/a"),
        *((key.replace("_", " "), f"{facts[key]:.2f}") for key in ("imbalance_ratio", "gini") if facts.get(key)),
        ("unreadable images", str(len(facts["unreadable"]))),
    ]
    display.table("Data", ("", ""), rows)
    for warning in facts["warnings"]:
        display.line(f"[yellow]![/] {escape(warning)}")


@click.command()
@project_options
@click.pass_obj
def status(session: Session, /, **options: Any) -> None:
    """Show what is up to date, what is stale, and why."""
    context = make_context(session, options)
    from rich.markup import escape

    from pogdiff_cli.stages import road

    known = context.project.manifest().runs
    names = list(dict.fromkeys([*known, *road.run_names(context.project)]))
    states = road.status(context, names)
    session.display.emit({"stages": [{**asdict(state), "fresh": state.fresh} for state in states]})
    rows = [(state.key, "up to date" if state.fresh else "; ".join(state.reasons)) for state in states]
    for key, text in rows:
        colour = "green" if text == "up to date" else "yellow"
        session.display.line(f"{escape(key):<28} [{colour}]{escape(text)}[/]")


@click.command()
@click.option("--repair", is_flag=True, help="Read every byte; set aside or make again what is damaged.")
@click.option("--dry-run", is_flag=True, help="With --repair: say what would be done, and do nothing.")
@project_options
@click.pass_obj
def doctor(session: Session, /, repair: bool, **options: Any) -> int:
    """Show devices, versions, memory, disk, what is missing and what is damaged."""
    from rich.markup import escape

    from pogdiff_cli.project.layout import find_root

    if repair:
        from pogdiff_cli.cli.upkeep import show_repair

        return show_repair(session, make_context(session, options))
    if options.pop("dry_run"):
        raise PogdiffError("--dry-run goes with --repair: doctor alone changes nothing.", exit_code=Exit.USAGE)
    from pogdiff_cli.stages import doctor as stage

    try:
        find_root(options["folder"])
    except PogdiffError:
        context = None
        set_display(session, **{key: options[key] for key in ("json_output", "quiet", "verbose")})
    else:
        context = make_context(session, options)
    checks = stage.run(context)
    session.display.emit({"checks": [asdict(check) for check in checks]})
    colours = {"ok": "green", "missing": "red", "damaged": "red", "noted": "yellow", "absent": "dim"}
    for check in checks:
        session.display.line(f"[{colours[check.state]}]{check.state:<8}[/]{escape(check.name)}: {escape(check.detail)}")
        if check.remedy:
            session.display.line(f"        {escape(check.remedy)}")
    return int(Exit.MISSING if any(check.state in ("missing", "damaged") for check in checks) else Exit.OK)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the shell's completion script:  eval "$(pogdiff completion bash)"."""
    kind = get_completion_class(shell)
    if kind is None:
        raise PogdiffError(f"No completion for {shell}.", exit_code=Exit.USAGE)
    root = context.find_root().command
    click.echo(kind(root, {}, "pogdiff", "_POGDIFF_COMPLETE").source())


BEFORE = (init, inspect)
AFTER = (status, doctor, gc, completion)
