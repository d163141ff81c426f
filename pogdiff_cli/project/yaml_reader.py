"""Reads the user's YAML as the user meant it, and refuses what could hurt, by line number.

YAML 1.1 reads ``1e-5`` as text, ``No`` as false, ``0123`` as 83 and ``12:30:45`` as 45045; here numbers are
what a person writes as numbers, ``true`` and ``false`` are the only booleans, and all else is text.
Anchors and aliases (the billion-laughs file), duplicate keys and deep nesting are refused.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from pogdiff_cli.errors import Exit, PogdiffError

MAX_DEPTH = 32
MAX_BYTES = 4 * 1024 * 1024  # of a file that a person writes
MAX_OWN_BYTES = 256 * 1024 * 1024  # of one that the program writes: some millions of identities
_FAST_FROM = 64 * 1024  # bytes from which libyaml parses: ten times as fast

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*)([eE][-+]?[0-9]+)?\Z")
_DIGITS = 1000  # of a whole number: Python itself reads up to 4300
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPECIAL = {".inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}


@dataclass(frozen=True, kw_only=True)
class Document:
    """A parsed file: its values, and the line (from 1) on which each dotted key stands."""

    values: Any
    lines: dict[str, int] = field(default_factory=dict)
    source: str = "<text>"


def read_yaml(path: Path, *, at_most: int = MAX_BYTES) -> Document:
    """Read one file of ``at_most`` bytes; raises PogdiffError (exit 2) that names file and line."""
    try:
        with path.open("rb") as file:
            raw = file.read(at_most + 1)
    except FileNotFoundError as missing:
        raise PogdiffError(f"{path.name} is missing from {path.parent}.", exit_code=Exit.USAGE) from missing
    except OSError as problem:
        raise PogdiffError(f"Cannot read {path}: {problem.strerror}.", exit_code=Exit.USAGE) from problem
    if len(raw) > at_most:
        raise PogdiffError(f"{path} is larger than {at_most} bytes.", exit_code=Exit.USAGE)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw[: problem.start].count(b"\n") + 1
        raise PogdiffError(
            f"{path}:{line}: not UTF-8 text.", hint="Mend that line, or save it as UTF-8.", exit_code=Exit.USAGE
        ) from problem
    return parse_yaml(text, source=str(path))


def parse_yaml(text: str, *, source: str = "<text>") -> Document:
    """Parse text; raises PogdiffError (exit 2) that names source and line."""
    fast = getattr(yaml, "CSafeLoader", None) if len(text) >= _FAST_FROM else None
    if fast is not None:
        # what libyaml refuses is left to the other parser, whose words the messages are made of
        with contextlib.suppress(yaml.YAMLError):
            return _parse(text, fast, source)
    try:
        return _parse(text, yaml.SafeLoader, source)
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else 1
        raise _refusal(source, line, problem.problem or "not valid YAML") from problem
    except ReaderError as problem:
        line = text.count("\n", 0, problem.position) + 1
        raise _refusal(source, line, f"the character U+{ord(text[problem.position]):04X} is not allowed") from problem


def parse_scalar(text: str, *, source: str) -> Any:
    """The value of a single command-line word, read like the file: ``[a, b]`` and ``{a: 1}`` included."""
    try:
        return parse_yaml(text, source=source).values
    except PogdiffError as problem:
        raise PogdiffError(
            problem.message,
            hint="Text with one of {}[]:# in it needs quotes of its own: '\"...\"'.",
            exit_code=Exit.USAGE,
        ) from problem


def _parse(text: str, loader: Any, source: str) -> Document:
    """One pass over the parser's events: nothing is built before it was looked at, and nothing recurses in C."""
    builder = _Builder(_safe_events(text, loader, source), source)
    values = builder.document()
    return Document(values=values, lines=builder.lines, source=source)


def _safe_events(text: str, loader: Any, source: str) -> Iterator[Any]:
    """The events of a text, up to the first that could hurt."""
    depth = 0
    for event in _events(text, loader, source):
        line = _line(event)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refusal(source, line, "anchors and aliases are not allowed; write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _refusal(source, line, f"nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if getattr(event, "tag", None):
            raise _refusal(source, line, f"the tag {event.tag} is not allowed")
        yield event


def _events(text: str, loader: Any, source: str) -> Iterator[Any]:
    """The parser's events; an escape beyond Unicode, a plain ValueError of PyYAML, is refused by line too."""
    line = 1
    try:
        for event in yaml.parse(text, Loader=loader):
            line = _line(event)
            yield event
    except ValueError as problem:
        raise _refusal(source, line, f"it cannot be read ({problem})") from problem


class _Builder:
    """Values, and the line of each key, from the events of one document."""

    def __init__(self, events: Iterator[Any], source: str) -> None:
        self._events, self._source = events, source
        self.lines: dict[str, int] = {}

    def document(self) -> Any:
        """The value of the only document; None where there is none."""
        values, seen = None, False
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    raise _refusal(self._source, _line(event), "a second document is not allowed")
                seen = True
                values = self._value(next(self._events), "")
        return values

    def _value(self, event: Any, path: str) -> Any:
        self.lines[path] = _line(event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            ahead = enumerate(iter(self._next_item, None))
            return [self._value(item, f"{path}[{i}]") for i, item in ahead]
        return self._scalar(event)

    def _scalar(self, event: Any) -> Any:
        text = self._text(event)
        try:
            return _scalar(text, event.style)
        except OverflowError as problem:
            raise _refusal(self._source, _line(event), str(problem)) from None

    def _text(self, event: Any) -> str:
        text = str(event.value)
        if _SURROGATE.search(text):
            raise _refusal(self._source, _line(event), "half of a surrogate pair is no character")
        return text

    def _next_item(self) -> Any:
        event = next(self._events)
        return None if isinstance(event, yaml.CollectionEndEvent) else event

    def _mapping(self, path: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while (event := self._next_item()) is not None:
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise _refusal(self._source, line, "a key must be a plain word")
            key = self._text(event)
            if key in result:
                raise _refusal(self._source, line, f"the key '{key}' stands here twice")
            below = f"{path}.{key}" if path else key
            result[key] = self._value(next(self._events), below)
            self.lines[below] = line  # where the key stands, though its value may begin on the next line
        return result


def _line(event: Any) -> int:
    """From 1."""
    return int(event.start_mark.line) + 1


def _scalar(text: str, style: str | None) -> Any:
    if style:  # quoted or a block: text, whatever it looks like
        return text
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.match(text):
        if len(text) > _DIGITS:
            raise OverflowError(f"a whole number of more than {_DIGITS} digits")
        return int(text.replace("_", ""))
    if text in _SPECIAL:
        return _SPECIAL[text]
    leading_zero = re.match(r"[-+]?0[0-9]", text)
    return _float(text) if _FLOAT.match(text) and not leading_zero else text


def _float(text: str) -> float:
    number = float(text.replace("_", ""))
    if math.isinf(number):
        raise OverflowError(f"{text[:40]} is larger than any number that can be computed with; infinity is .inf")
    return number


def _refusal(source: str, line: int, reason: str) -> PogdiffError:
    return PogdiffError(f"{source}:{line}: {reason}.", hint="Mend that line and try again.", exit_code=Exit.USAGE)
