"""What a judge's answer says: a score between 0 and 10, or why it is none. Nothing is guessed and nothing imputed."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["score", "refused", "unparsable", "out_of_range"]
LOWEST, HIGHEST = 0.0, 10.0

_SIGNED = r"[-+−]?\d+(?:[.,]\d+)?"  # noqa: RUF001 - the minus sign that models like to write
_NUMBER = rf"(?<![\w.,/–—-]){_SIGNED}"  # noqa: RUF001 - not the end of a range, a fraction or a longer number
_OF_TEN = r"\s*(?:/|out\s+of)\s*10(?:[.,]0+)?(?![\d.,]*\d)"
_BARE = re.compile(rf"({_SIGNED})(?:{_OF_TEN})?\s*\.?")
_IN_PROSE = re.compile(rf"({_NUMBER}){_OF_TEN}", re.IGNORECASE)
_LABELLED = re.compile(
    rf"\b(?:score|rating|rate)(?:\s+(?:it|this|them|the\s+\w+))?\s*(?:is|of|as|at|:|=)?\s*({_NUMBER})(?!\s*%|[\d.,]*\d)",
    re.IGNORECASE,
)
#: The scale itself, which an answer likes to repeat: "on a scale from 0 to 10".
_SCALE = re.compile(r"\b[01](?:\.0)?\s*(?:to|and|[-–—])\s*10(?:\.0)?\b", re.IGNORECASE)  # noqa: RUF001
_RANGE = re.compile(r"\d\s*(?:to|or|and|[-–—])\s*\d", re.IGNORECASE)  # noqa: RUF001
_FENCE = re.compile(r"\A```\w*\s*(.*?)\s*```\Z", re.DOTALL)
_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|(?:can(?:no|['’])t|can\s+not|won['’]t|will\s+not|unable\s+to|not\s+able\s+to|"  # noqa: RUF001
    r"not\s+(?:comfortable|permitted|allowed))\b.{0,60}"
    r"\b(?:help|assist|identif\w*|recogni[sz]e|compare|determine|provide|give|rate|comply|do|answer|say))\b",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How one answer counts; ``score`` is set for the outcome "score" alone."""

    outcome: Outcome
    score: float | None = None


def read_score(text: str, refusal: str | None = None) -> Reading:
    """``{"score": 7.5}``, "7.5", "7/10", "I'd say 7 out of 10", "Score: 7": the score, if there is exactly one."""
    if refusal:
        return Reading(outcome="refused")
    found = _numbers(_bare_text(text))
    if len(found) == 1:
        value = found.pop()
        inside = LOWEST <= value <= HIGHEST
        return Reading(outcome="score", score=value) if inside else Reading(outcome="out_of_range")
    if not found and _REFUSAL.search(text):
        return Reading(outcome="refused")
    return Reading(outcome="unparsable")


def _bare_text(text: str) -> str:
    """Without the code fence and the emphasis around it."""
    stripped = text.strip()
    fenced = _FENCE.match(stripped)
    return (fenced[1] if fenced else stripped).replace("*", "").replace("`", "").strip()


def _numbers(text: str) -> set[float]:
    """The distinct scores that an answer names: two contradict one another."""
    if text.startswith("{"):
        return _from_json(text)
    if bare := _BARE.fullmatch(text):
        return {_value(bare[1])}
    if "{" in text:  # prose around the JSON that was asked for
        inner = text[text.index("{") : text.rindex("}") + 1] if "}" in text else ""
        return _from_json(inner)
    told = _SCALE.sub(" ", text)
    if _RANGE.search(told):
        return set()
    return {_value(match) for pattern in (_IN_PROSE, _LABELLED) for match in pattern.findall(told)}


def _from_json(text: str) -> set[float]:
    try:
        body: Any = json.loads(text)
    except (ValueError, RecursionError):
        return set()
    value = body.get("score") if isinstance(body, dict) else None
    if isinstance(value, str) and (bare := _BARE.fullmatch(value.strip())):
        value = _value(bare[1])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return set()
    try:
        number = float(value)
    except OverflowError:
        return {math.inf}
    return set() if math.isnan(number) else {number}


def _value(text: str) -> float:
    return float(text.replace("−", "-").replace(",", "."))  # noqa: RUF001
