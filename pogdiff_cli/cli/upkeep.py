"""How ``doctor --repair`` looks on the terminal."""

from __future__ import annotations

from rich.markup import escape

from pogdiff_cli.cli.options import Session
from pogdiff_cli.errors import Exit
from pogdiff_cli.stages import repair
from pogdiff_cli.stages.context import Context

_COLOURS = {"damaged": "red", "missing": "red", "changed": "yellow", "interrupted": "yellow", "leftover": "dim"}


def show_repair(session: Session, context: Context) -> int:
    """Each finding with what became of it; exit 4 where something is left that only the user can mend."""
    found = repair.run(context)
    display = session.display
    display.emit(found.to_json())
    for one in found.treated:
        finding = one.finding
        colour = _COLOURS[finding.state]
        display.line(f"[{colour}]{finding.state:<12}[/]{escape(finding.path)}")
        said = "; ".join(part for part in (one.done, finding.advice) if part)
        for text in (finding.detail, said):
            display.line(f"{'':<12}{escape(text)}")
    remaining = [one.finding.path for one in found.treated if one.remains]
    hurt = any(one.finding.hurts for one in found.treated)
    if not found.treated:
        display.line(f"All {found.recorded} recorded artifacts are as they were written, to the last byte.")
    if found.folder is not None:
        display.line(f"What was set aside lies in {escape(found.folder)}; 'pogdiff gc' shows and removes it.")
    if remaining:
        display.line(f"[red]Not mended:[/] {escape(', '.join(remaining))}")
    if context.mode == "dry-run":
        return int(Exit.MISSING if hurt else Exit.OK)
    return int(Exit.MISSING if remaining else Exit.OK)
