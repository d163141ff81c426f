"""Gates: bounds in the project's configuration that an evaluation must keep, or the command fails.

::

    gate   := group "." metric [ "." aspect ]      few.identity, few.fid.improvement, many.recall.low
            | group ".verdict"                     many.verdict
    group  := all | many | medium | few
    aspect := value (the default) | low | high     of the scored run
            | improvement | improvement_low | p    against the baseline; positive is better
    bound  := (">=" | ">" | "<=" | "<") number     ">= 0.3"
            | number                               at least as good as, in the metric's own direction
            | ["not"] ("improved" | "regressed" | "inconclusive")         for a verdict: "not regressed"

A gate whose number could not be computed fails, and says why.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.registry import METRICS, did_you_mean

if TYPE_CHECKING:
    from pogdiff_cli.metrics.compare import Comparison
    from pogdiff_cli.metrics.scores import Scores

_GROUPS: Final = ("all", "many", "medium", "few")
_OF_RUN: Final = ("value", "low", "high")
_OF_PAIR: Final = ("improvement", "improvement_low", "p")
_VERDICTS: Final = ("improved", "regressed", "inconclusive")
_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One parsed gate; ``metric`` is "verdict" for a verdict."""

    name: str
    bound: str
    group: str
    metric: str
    aspect: str
    relation: str  # an operator; "is" or "not" for a verdict
    limit: float | str


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Whether it held."""

    name: str
    bound: str
    actual: float | str | None
    passed: bool
    reason: str | None


def parse_gates(gates: Mapping[str, str | float]) -> tuple[Gate, ...]:
    """Refuse a gate that could never be checked before anything is spent on computing its number."""
    return tuple(_parse(name, bound) for name, bound in gates.items())


def check_gates(
    gates: Mapping[str, str | float], *, scores: Scores, comparison: Comparison | None = None
) -> list[GateResult]:
    """Check each gate against the scored run, or against its comparison with the baseline."""
    return [_check(gate, scores, comparison) for gate in parse_gates(gates)]


def _parse(name: str, bound: str | float) -> Gate:
    parts = name.split(".")
    if parts[0] not in _GROUPS:
        raise _refused(name, f"unknown group {parts[0]!r}", did_you_mean(parts[0], _GROUPS))
    if parts[1:] == ["verdict"]:
        return _parse_verdict(name, str(bound))
    metric = parts[1] if len(parts) > 1 else ""
    if metric not in METRICS:
        raise _refused(name, f"unknown metric {metric!r}", did_you_mean(metric, METRICS))
    aspect = parts[2] if len(parts) > 2 else "value"
    if aspect not in (*_OF_RUN, *_OF_PAIR) or len(parts) > 3:
        raise _refused(name, f"unknown aspect {'.'.join(parts[2:])!r}", did_you_mean(aspect, (*_OF_RUN, *_OF_PAIR)))
    relation, limit = _parse_bound(name, bound, _natural(metric, aspect))
    return Gate(
        name=name,
        bound=str(bound),
        group=parts[0],
        metric=metric,
        aspect=aspect,
        relation=relation,
        limit=limit,
    )


def _parse_verdict(name: str, bound: str) -> Gate:
    words = bound.split()
    relation = "not" if words[:1] == ["not"] else "is"
    wanted = words[-1] if words else ""
    if wanted not in _VERDICTS or len(words) != (2 if relation == "not" else 1):
        raise _refused(name, f"cannot read {bound!r}", 'Write "improved", or "not regressed".')
    group = name.split(".", maxsplit=1)[0]
    return Gate(
        name=name,
        bound=bound,
        group=group,
        metric="verdict",
        aspect="verdict",
        relation=relation,
        limit=wanted,
    )


def _parse_bound(name: str, bound: str | float, natural: str) -> tuple[str, float]:
    match = re.fullmatch(r"\s*(>=|<=|>|<)?\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*", str(bound))
    try:
        if match is None or isinstance(bound, bool):
            raise ValueError
        return match[1] or natural, float(match[2])
    except ValueError:
        raise _refused(name, f"cannot read {bound!r}", 'Write a bound such as ">= 0.3".') from None


def _natural(metric: str, aspect: str) -> str:
    """What "at least as good as" means."""
    if aspect == "p":
        return "<="
    return ">=" if aspect in _OF_PAIR or METRICS[metric].direction == "higher" else "<="


def _refused(name: str, what: str, hint: str) -> PogdiffError:
    return PogdiffError(f"Gate {name!r}: {what}.", hint=hint, exit_code=Exit.USAGE)


def _check(gate: Gate, scores: Scores, comparison: Comparison | None) -> GateResult:
    actual, reason = _actual(gate, scores, comparison)
    passed = False
    if isinstance(actual, str):
        passed = (actual == gate.limit) == (gate.relation == "is")
    elif actual is not None:
        passed = _COMPARE[gate.relation](actual, float(gate.limit))
    return GateResult(name=gate.name, bound=gate.bound, actual=actual, passed=passed, reason=reason)


def _actual(gate: Gate, scores: Scores, comparison: Comparison | None) -> tuple[float | str | None, str | None]:
    """The number or verdict a gate speaks of, or why there is none."""
    if gate.group not in scores.groups:
        return None, f"no identity belongs to {gate.group!r}"
    if gate.aspect in _OF_RUN:
        found = scores.groups[gate.group].metrics.get(gate.metric)
        value = getattr(found, gate.aspect, None)
        return value, None if value is not None else (found.reason if found else "not computed")
    verdict = comparison.group(gate.group) if comparison else None
    if verdict is None:
        return None, "no baseline was given"
    if gate.metric == "verdict":
        return verdict.verdict, None
    difference = next((d for d in verdict.differences if d.metric == gate.metric), None)
    aspect = "low" if gate.aspect == "improvement_low" else gate.aspect
    value = getattr(difference, aspect, None)
    return value, None if value is not None else (difference.reason if difference else "not computed")
