"""Reads the user's YAML as the user meant it, and refuses what could hurt, by line number.

YAML 1.1 reads ``1e-5`` as text, ``No`` as false, ``0123`` as 83 and ``12:30:45`` as 45045; here numbers are
what a person writes as numbers, ``true`` and ``false`` are the only booleans, and all else is text.
Anchors and aliases (the billion-laughs file), duplicate keys and deep nesting are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from pogdiff_cli.errors import Exit, PogdiffError

MAX_DEPTH = 32
MAX_BYTES = 4 * 1024 * 1024

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = {".inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}


@dataclass(frozen=True, kw_only=True)
class Document:
    """A parsed file: its values, and the line (from 1) on which each dotted key stands."""

    values: Any
    lines: dict[str, int] = field(default_factory=dict)
    source: str = "<text>"


def read_yaml(path: Path) -> Document:
    """Read one file; raises PogdiffError (exit 2) that names file and line."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as missing:
        raise PogdiffError(f"{path.name} is missing from {path.parent}.", exit_code=Exit.USAGE) from missing
    except OSError as problem:
        raise PogdiffError(f"Cannot read {path}: {problem.strerror}.", exit_code=Exit.USAGE) from problem
    if len(raw) > MAX_BYTES:
        raise PogdiffError(f"{path} is larger than {MAX_BYTES} bytes.", exit_code=Exit.USAGE)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw[: problem.start].count(b"\n") + 1
        raise PogdiffError(f"{path}:{line}: not UTF-8 text.", exit_code=Exit.USAGE) from problem
    return parse_yaml(text, source=str(path))


def parse_yaml(text: str, *, source: str = "<text>") -> Document:
    """Parse text; raises PogdiffError (exit 2) that names source and line."""
    try:
        _refuse_what_could_hurt(text, source)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else 1
        raise _refusal(source, line, problem.problem or "not valid YAML") from problem
    except ReaderError as problem:
        line = text.count("\n", 0, problem.position) + 1
        raise _refusal(source, line, f"the character U+{ord(text[problem.position]):04X} is not allowed") from problem
    lines: dict[str, int] = {}
    values = None if node is None else _value(node, "", lines, source)
    return Document(values=values, lines=lines, source=source)


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


def _refuse_what_could_hurt(text: str, source: str) -> None:
    depth = 0
    for event in _events(text):
        line = event.start_mark.line + 1
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


def _events(text: str) -> Iterator[Any]:
    yield from yaml.parse(text, Loader=yaml.SafeLoader)


def _value(node: yaml.Node, path: str, lines: dict[str, int], source: str) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines, source)
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, f"{path}[{i}]", lines, source) for i, child in enumerate(node.value)]
    return _scalar(node)


def _mapping(node: yaml.MappingNode, path: str, lines: dict[str, int], source: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise _refusal(source, line, "a key must be a plain word")
        key = str(key_node.value)
        if key in result:
            raise _refusal(source, line, f"the key '{key}' stands here twice")
        below = f"{path}.{key}" if path else key
        result[key] = _value(value_node, below, lines, source)
        lines[below] = line  # where the key stands, though its value may begin on the next line
    return result


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    if getattr(node, "style", None) is not None:  # quoted or a block: text, whatever it looks like
        return text
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.match(text):
        return int(text.replace("_", ""))
    if text in _SPECIAL:
        return _SPECIAL[text]
    leading_zero = re.match(r"[-+]?0[0-9]", text)
    if _FLOAT.match(text) and not leading_zero:
        return float(text.replace("_", ""))
    return text


def _refusal(source: str, line: int, reason: str) -> PogdiffError:
    return PogdiffError(f"{source}:{line}: {reason}.", hint="Mend that line and try again.", exit_code=Exit.USAGE)
