"""What ``doctor`` finds wrong with a project's files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: damaged: not what was written. missing: recorded, and gone. changed: perhaps by hand. interrupted: its process is
#: gone. leftover: of no use any more.
State = Literal["damaged", "missing", "changed", "interrupted", "leftover"]
#: What a repair does about it. "next run": nothing has to be done. "none": it is the user's, or not to be mended.
Remedy = Literal["set aside", "derive", "make again", "mark", "copy", "receipt", "next run", "none"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    ``files``: what is set aside of it, all of it where empty; of a receipt, its stage.
    """

    path: str  # in the project
    state: State
    detail: str
    remedy: Remedy = "none"
    advice: str = ""  # what happens next, or what to do
    files: tuple[str, ...] = ()

    @property
    def hurts(self) -> bool:
        """Whether something that the project needs is not there, or not as it was."""
        return self.state in ("damaged", "missing")


def named(paths: list[str], *, at_most: int = 3) -> str:
    """``a, b, c and 5 more``."""
    rest = len(paths) - at_most
    return ", ".join(paths[:at_most]) + (f" and {rest} more" if rest > 0 else "")
