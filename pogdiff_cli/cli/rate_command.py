"""``pogdiff rate``: write the page for raters, or merge what they saved from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pogdiff_cli.cli.options import Session, make_context, project_options
from pogdiff_cli.errors import Exit, PogdiffError


@click.command()
@project_options
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--merge", is_flag=True, help="Merge the answers in FILES (JSON or CSV, or folders of them) into scores.")
@click.option("--runs", help="Comma-separated: the runs to rate. Default: all that have samples.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write the page.")
@click.option("--key", type=click.Path(path_type=Path), help="The key of an earlier page.")
@click.pass_obj
def rate(
    session: Session,
    /,
    files: tuple[Path, ...],
    merge: bool,
    runs: str | None,
    output: Path | None,
    key: Path | None,
    **options: Any,
) -> None:
    """Write a blinded page on which people rate the images, or merge what they answered."""
    if bool(files) != merge or (merge and (runs or output)) or (key and not merge):
        raise PogdiffError(
            "Either 'pogdiff rate [--runs A,B] [-o PAGE]' or 'pogdiff rate --merge FILES [--key KEY]'.",
            exit_code=Exit.USAGE,
        )
    context = make_context(session, options)
    from pogdiff_cli.cli.rating_results import show_merged, show_page

    if merge:
        from pogdiff_cli.stages.rate_merge import merge as merge_answers

        show_merged(session.display, merge_answers(context, files, key_file=key))
        return
    from pogdiff_cli.stages import rate as stage

    wanted = None if runs is None else tuple(dict.fromkeys(part.strip() for part in runs.split(",") if part.strip()))
    show_page(session.display, stage.run(context, wanted, output=output))
