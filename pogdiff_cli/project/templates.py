"""The project templates: in the installed package, or beside it in a checkout."""

from __future__ import annotations

import difflib
from pathlib import Path

from pogdiff_cli.errors import Exit, PogdiffError

_PACKAGE = Path(__file__).resolve().parents[1]


def template_root() -> Path:
    """The folder of all templates."""
    for folder in (_PACKAGE / "_templates", _PACKAGE.parent / "templates"):
        if folder.is_dir():
            return folder
    raise PogdiffError("This installation has no templates.", hint="Install pogdiff again.")


def template_names() -> list[str]:
    """Every template that ``init`` can make a project from."""
    return sorted(path.parent.name for path in template_root().glob("*/pogdiff.yaml"))


def find_template(name: str) -> Path:
    """The folder of one template; exit 2 with the nearest name where there is none."""
    known = template_names()
    if name in known:
        return template_root() / name
    near = difflib.get_close_matches(name, known, n=1)
    raise PogdiffError(
        f"There is no template '{name}'.",
        hint=(f"Did you mean '{near[0]}'? " if near else "") + f"There are {', '.join(known)}.",
        exit_code=Exit.USAGE,
    )
