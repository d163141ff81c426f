"""``pogdiff gc``: shows what nothing refers to, asks, and removes it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pogdiff_cli.cli.options import Session, make_context, project_options
from pogdiff_cli.errors import Exit, PogdiffError

if TYPE_CHECKING:
    from pogdiff_cli.stages.garbage import Found


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@project_options
@click.pass_obj
def gc(session: Session, /, yes: bool, **options: Any) -> None:
    """Remove what nothing refers to: caches of the past, leftovers, what was set aside."""
    context = make_context(session, options)
    from pogdiff_cli.stages import garbage

    found = garbage.find(context)
    _show(session, found)
    if context.mode == "dry-run" or not found.items:
        session.display.emit({**found.to_json(), "removed": False})
        return
    if not yes and not _agreed(session, found):
        session.display.emit({**found.to_json(), "removed": False})
        session.display.line("Nothing was removed.")
        return
    gone = garbage.remove(context, found)
    session.display.emit({**gone.to_json(), "removed": True})
    session.display.line(f"Removed {size_in_words(gone.bytes)}.")
    if len(gone.items) < len(found.items):
        session.display.say(f"{len(found.items) - len(gone.items)} of them are in use by now, and stay.")


def _show(session: Session, found: Found) -> None:
    from rich.markup import escape

    display = session.display
    for item in found.items:
        display.line(f"{size_in_words(item.bytes):>10}  {escape(item.path)}")
        display.line(f"            [dim]{escape(item.reason)}[/]")
    for reason in found.kept:
        display.say(f"Kept: {reason}")
    if found.items:
        display.line(f"{size_in_words(found.bytes):>10}  in all")
    else:
        display.line("Nothing to remove: something refers to all that is there.")


def _agreed(session: Session, found: Found) -> bool:
    if not sys.stdin.isatty() or session.display.json_output:
        raise PogdiffError(
            f"Nothing was removed: nobody can be asked about {size_in_words(found.bytes)}.",
            hint="Type --yes to remove it without a question, or --dry-run to look only.",
            exit_code=Exit.USAGE,
        )
    return click.confirm(f"Remove {size_in_words(found.bytes)} for good?", err=True)


def size_in_words(count: int) -> str:
    """``3.1 GiB``, ``20 KiB`` or ``7 B``."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
