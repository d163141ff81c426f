"""Ratios of things measured side by side: one a pair, and the median over pairs."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

MIN_PAIRS = 5
_COMPARE = {"at least": operator.ge, "at most": operator.le, "below": operator.lt}


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a figure should reach."""

    relation: Literal["at least", "at most", "below"]
    bound: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` reaches it."""
        return bool(_COMPARE[self.relation](value, self.bound))

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A named figure: a value of each pair, and what it should reach."""

    name: str
    what: str
    values: tuple[float, ...]
    target: Target | None = None

    @property
    def median(self) -> float:
        """The median over pairs."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None where there is none."""
        return None if self.target is None else self.target.holds(self.median)

    def as_json(self) -> dict[str, Any]:
        """Everything, for a result file."""
        return {
            "name": self.name,
            "what": self.what,
            "median": round(self.median, 5),
            "min": round(min(self.values), 5),
            "max": round(max(self.values), 5),
            "pairs": [round(value, 5) for value in self.values],
            "target": None if self.target is None else str(self.target),
            "met": self.met,
        }

    def line(self) -> str:
        """One line for whoever watches."""
        spread = f"{self.median:.3f} ({min(self.values):.3f} to {max(self.values):.3f}, {len(self.values)} pairs)"
        verdict = "" if self.target is None else f"  target {self.target}: {'met' if self.met else 'MISSED'}"
        return f"{self.name}: {spread}{verdict}\n    {self.what}"


def ratio(name: str, what: str, over: Sequence[float], under: Sequence[float], target: Target | None = None) -> Figure:
    """``over[i] / under[i]`` for each pair i: what was measured in one round is compared, never across rounds."""
    if len(over) != len(under) or not over:
        raise ValueError(f"{name}: {len(over)} and {len(under)} measurements make no pairs")
    values = tuple(a / b for a, b in zip(over, under, strict=True))
    return Figure(name=name, what=what, values=values, target=target)
