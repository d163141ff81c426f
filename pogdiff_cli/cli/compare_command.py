"""``pogdiff compare``: scored runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pogdiff_cli.cli.options import Session, output_options, set_display
from pogdiff_cli.errors import Exit, PogdiffError

_SUFFIXES = {".csv": "csv", ".json": "json", ".md": "markdown", ".tex": "latex"}


@click.command()
@click.argument("runs", nargs=-1, metavar="[[PROJECT:]RUN]...")
@click.option("-C", "folders", type=click.Path(path_type=Path), multiple=True, help="A project; may be repeated.")
@click.option("--metrics", help="Comma-separated; default: all that were computed.")
@click.option("--groups", help="Comma-separated: few, medium, many, all.")
@click.option("--paper", is_flag=True, help="Add what the paper prints, apart from what was measured here.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "csv", "json", "markdown", "latex"]),
    help="Default: text, or what the output's suffix says.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write a file: .csv, .json, .md or .tex.")
@output_options
@click.pass_obj
def compare(
    session: Session,
    /,
    runs: tuple[str, ...],
    folders: tuple[Path, ...],
    metrics: str | None,
    groups: str | None,
    paper: bool,
    form: str | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Show scored runs of one project or several side by side; the first is what others are compared with."""
    display = set_display(session, **options)
    form = _form(form, output, json_output=options["json_output"])
    from pogdiff_cli.stages.compare import select

    found = select(runs, folders, metrics=_words(metrics), groups=_words(groups))
    from pogdiff_cli.report.side_by_side import document, shown_metrics

    if form != "text":
        text = document(form, found.runs, found.comparisons, printed=paper)
        if output is None:
            display.text(text)
        else:
            from pogdiff_cli.project.atomic import write_text

            write_text(output, text)
            display.say(f"Wrote {output}.")
        return
    from pogdiff_cli.cli.results import show_side_by_side
    from pogdiff_cli.report.paper import SOURCE, paper_table

    show_side_by_side(display, found)
    if paper:
        table = paper_table(shown_metrics(found.runs))
        display.line("")
        display.table(f"{SOURCE}. Not comparable with the tables above.", table.header, table.rows)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _form(form: str | None, output: Path | None, *, json_output: bool) -> str:
    """The form asked for, else the one that the file's suffix says, else text."""
    if json_output:
        form = form or "json"
    if output is None:
        return form or "text"
    form = form or _SUFFIXES.get(output.suffix.lower())
    if form is None or form == "text":
        raise PogdiffError(
            f"In which form shall {output} be written?",
            hint="Name it .csv, .json, .md or .tex, or give --format.",
            exit_code=Exit.USAGE,
        )
    return form
