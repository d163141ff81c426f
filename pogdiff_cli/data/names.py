"""Generic names instead of real ones (paper, Sec. 4.1: "Albert Einstein" becomes "Lukas").

A base model may know the real name; a generic one is learnt from the training images alone.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Literal

from pogdiff_cli.data.surnames import is_initials, lone_surnames
from pogdiff_cli.errors import Exit, PogdiffError

NameMode = Literal["generic", "keep"]


@cache
def _word_pattern() -> re.Pattern[str]:
    """A run of letters with their marks, or a run of digits: s21 and "s 21" are the same two words."""
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    return re.compile(rf"[^\W\d_](?:[^\W\d_]|[{re.escape(marks)}])*|\d+")


_MOST_INITIALS = 4
_BETWEEN = re.compile(r"[\s_.\-‐‑]*")  # noqa: RUF001 - what may stand between the words of one name


@cache
def _shipped(file: str) -> tuple[str, ...]:
    text = (resources.files("pogdiff_cli.data") / file).read_text(encoding="utf-8")
    lines = (unicodedata.normalize("NFC", line.strip()) for line in text.splitlines())
    return tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def words_of(texts: Iterable[str]) -> set[str]:
    """Every word of the texts, case-folded: what a generic name must not be."""
    return {word.casefold() for text in texts for word in _word_pattern().findall(text)}


def assign_names(
    identities: Sequence[str],
    *,
    seed: int,
    taken: set[str],
    mode: NameMode,
    known: Mapping[str, str] | None = None,
    pool: Sequence[str] | None = None,
) -> dict[str, str]:
    """Identity -> the name its captions use.

    "generic": a name of ``pool`` (the shipped list) that shares no word with any identity, with ``taken``
    (see :func:`words_of`) or with another identity's name; two-part names once the list is used up. ``known``
    names are kept, so that adding an identity renames nobody. "keep": the identity as it is spoken.
    """
    known = dict(known or {})
    if mode == "keep":
        return _kept(identities, known)
    forbidden = {word.casefold() for word in taken} | words_of([*identities, *known])
    in_use = {known[identity].casefold() for identity in known}
    candidates = _Candidates(_allowed(_shipped("generic_names.txt") if pool is None else pool, forbidden), forbidden)
    candidates.use(known.values())
    assigned = {identity: known[identity] for identity in identities if identity in known}
    for identity in sorted(set(identities) - set(assigned)):
        name = candidates.take(_number(seed, identity), in_use)
        in_use.add(name.casefold())
        assigned[identity] = name
    return {identity: assigned[identity] for identity in identities}


def _kept(identities: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    spoken = {identity: known.get(identity, " ".join(identity.replace("_", " ").split())) for identity in identities}
    usage: dict[str, int] = {}
    for name in spoken.values():
        usage[name.casefold()] = usage.get(name.casefold(), 0) + 1
    return {who: name if name and usage[name.casefold()] == 1 else who for who, name in spoken.items()}


def _allowed(pool: Sequence[str], forbidden: set[str]) -> list[str]:
    return [name for name in dict.fromkeys(pool) if name and not words_of([name]) & forbidden]


def _number(seed: int, identity: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{identity}".encode()).digest()[:8], "big")


class _Candidates:
    """Names not yet given: single ones first, then first and second names."""

    def __init__(self, first: list[str], forbidden: set[str]) -> None:
        self._first = first
        self._second = _allowed(_shipped("second_names.txt"), forbidden | words_of(first))
        self._singles = set(first)

    def use(self, names: Iterable[str]) -> None:
        """Names that other identities have; a first name in any of them is no single name any more."""
        words = words_of(names)
        self._singles = {name for name in self._singles if not words_of([name]) & words}

    def take(self, start: int, in_use: set[str]) -> str:
        """The first free name from ``start`` on: a hashed start hardly moves when others are added."""
        if self._singles:
            name = next(name for name in _cycle(self._first, start) if name in self._singles)
            self.use([name])
            return name
        total = len(self._first) * len(self._second)
        for step in range(total):
            # consecutive numbers change the first name, so that no one of them is crowded
            second, first = divmod((start + step) % total, len(self._first))
            name = f"{self._first[first]} {self._second[second]}"
            if name.casefold() not in in_use:
                return name
        raise PogdiffError(
            f"The {total + len(self._first)} generic names do not suffice.",
            hint="Set caption.names to 'keep', or give a longer list of names.",
            exit_code=Exit.DATA,
        )


def _cycle(names: list[str], start: int) -> Iterator[str]:
    offset = start % len(names)
    yield from names[offset:]
    yield from names[:offset]


@dataclass(frozen=True, kw_only=True)
class _Form:
    """One real name as a sequence of words."""

    words: tuple[str, ...]  # case-folded
    letters: str  # as the identity is written, separators aside
    generic: str
    initials: str | None = None  # of a lone surname: what may stand before it


class NameReplacer:
    """Replaces real names in many texts: linear in a text's length, whatever the number of names.

    ``mapping`` holds every identity of the data set. A surname alone stands for its owner where it is nobody else's
    and no common word; initials before it go with it.
    """

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self._forms: dict[tuple[str, ...], _Form] = {}  # by words: "person 7" and "person 8" share their first
        self._lengths: dict[str, list[int]] = {}
        for real, generic in mapping.items():
            self._know(real, generic, None)
        for surname in lone_surnames(mapping, _words):
            self._know(surname.text, mapping[surname.identity], surname.initials)
        for lengths in self._lengths.values():  # the longest first: "Anna Maria" before "Anna"
            lengths.sort(reverse=True)

    def _know(self, name: str, generic: str, initials: str | None) -> None:
        words = _words(name)
        form = _Form(words=tuple(map(str.casefold, words)), letters="".join(words), generic=generic, initials=initials)
        if not words or form.words in self._forms:
            return
        self._forms[form.words] = form
        lengths = self._lengths.setdefault(form.words[0], [])
        if len(words) not in lengths:
            lengths.append(len(words))

    def __call__(self, text: str) -> str:
        """The text with every real name replaced; it is NFC normalised."""
        text = unicodedata.normalize("NFC", text)
        tokens = list(_word_pattern().finditer(text))
        pieces, position, index = [], 0, 0
        while index < len(tokens):
            form = self._form_at(text, tokens, index)
            if form is None:
                index += 1
                continue
            end = tokens[index + len(form.words) - 1].end()
            found = "".join(token.group() for token in tokens[index : index + len(form.words)])
            start = _with_initials(text, tokens[:index], tokens[index].start(), position, form)
            pieces += [text[position:start], _in_case_of(found, form)]
            position, index = end, index + len(form.words)
        return "".join([*pieces, text[position:]])

    def _form_at(self, text: str, tokens: list[re.Match[str]], index: int) -> _Form | None:
        for length in self._lengths.get(tokens[index].group().casefold(), ()):
            run = tokens[index : index + length]
            form = self._forms.get(tuple(token.group().casefold() for token in run))
            if form is None or len(run) < length:
                continue
            gaps = (text[left.end() : right.start()] for left, right in pairwise(run))
            if all(_BETWEEN.fullmatch(gap) for gap in gaps) and _bounded(text, run[0].start(), run[-1].end()):
                return form
        return None


def _with_initials(text: str, before: list[re.Match[str]], start: int, position: int, form: _Form) -> int:
    """Where "J. W. Marriott" begins, found by its surname; nothing before ``position`` is taken."""
    letters = ""
    for token in reversed(before[-_MOST_INITIALS:] if form.initials else []):
        letters = token.group().casefold() + letters
        near = token.start() >= position and _BETWEEN.fullmatch(text[token.end() : start])
        if not (near and is_initials(token.group()) and _bounded(text, token.start(), token.end())):
            break
        if str(form.initials).endswith(letters) or str(form.initials).startswith(letters):
            start = token.start()
    return start


def _words(text: str) -> list[str]:
    return _word_pattern().findall(unicodedata.normalize("NFC", text))


def _bounded(text: str, start: int, end: int) -> bool:
    """No letter or digit touches the span: s2 is not in s21, and underscores separate."""
    before, after = text[start - 1 : start], text[end : end + 1]
    return not before.isalnum() and not after.isalnum()


def _in_case_of(found: str, form: _Form) -> str:
    """EINSTEIN -> LUKAS, einstein -> lukas; written as the identity is, the generic name stands as it is."""
    if found == form.letters:
        return form.generic
    if found.isupper() and sum(character.isalpha() for character in found) > 1:
        return form.generic.upper()
    return form.generic.lower() if found.islower() else form.generic


def replace_names(text: str, mapping: Mapping[str, str]) -> str:
    """One text with the real names of ``mapping`` replaced; for many texts keep a :class:`NameReplacer`."""
    return NameReplacer(mapping)(text)
