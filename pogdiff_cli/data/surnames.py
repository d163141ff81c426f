"""Surnames that may stand alone for their owner: "Lovelace" for Ada Lovelace, but not "Brown" for James Brown."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

_SPACES = re.compile(r"[\s_]+")
_SUFFIXES = frozenset({"jr", "sr", "ii", "iii", "iv"})
_SHORTEST = 3  # letters: shorter ones are abbreviations as often as names
_LONGEST_INITIALS = 3  # "JW", "JRR"


@dataclass(frozen=True, kw_only=True)
class Surname:
    """The last part of one identity's name, which belongs to no other identity and is no common word."""

    identity: str
    text: str  # as the identity is written: it may be of several words, as Johnson-Smith
    initials: str  # of what stands before it, case-folded: "jw" for JW Marriott and for John Willard Marriott


def lone_surnames(identities: Mapping[str, str], words_of: Callable[[str], list[str]]) -> list[Surname]:
    """Surnames that speak of one identity alone. ``identities`` maps each to the name that takes its place."""
    spread = Counter(word for identity in identities for word in {word.casefold() for word in words_of(identity)})
    found = []
    for identity, generic in identities.items():
        parts = [part for part in _SPACES.split(unicodedata.normalize("NFC", identity)) if part]
        while len(parts) > 1 and parts[-1].rstrip(".").casefold() in _SUFFIXES:
            parts.pop()
        words = words_of(parts[-1]) if len(parts) > 1 else []
        folded = [word.casefold() for word in words]
        kept = {word.casefold() for word in words_of(generic)}  # names that are kept need no other
        if folded and not kept & set(folded) and _is_a_name(folded) and all(spread[word] == 1 for word in folded):
            initials = "".join(_initials(word) for part in parts[:-1] for word in words_of(part))
            found.append(Surname(identity=identity, text=parts[-1], initials=initials))
    return found


def is_initials(word: str) -> bool:
    """J, JW, JRR: what may stand before a surname in place of the other names."""
    return len(word) <= _LONGEST_INITIALS and word.isupper()


def _initials(word: str) -> str:
    return word.casefold() if is_initials(word) else word[0].casefold()


def _is_a_name(words: Sequence[str]) -> bool:
    letters = all(word.isalpha() and len(word) >= _SHORTEST for word in words)
    return letters and not (len(words) == 1 and words[0] in common_words())


@cache
def common_words() -> frozenset[str]:
    """English words that a caption may hold without speaking of anybody."""
    text = (resources.files("pogdiff_cli.data") / "common_words.txt").read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())
