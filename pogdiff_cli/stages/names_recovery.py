"""``names.yaml`` says which name each identity has in every caption and prompt: without it trained runs are orphans.

It is damaged where it cannot be read. What stands in captions and samples says the same, and the seed says what names
identities get that are in neither. Where it can be read and is not as written, somebody may have edited it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pogdiff_cli.data.names import assign_names, words_of
from pogdiff_cli.data.records import read_records
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.project.digests import PREFIX
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.yaml_reader import MAX_OWN_BYTES, read_yaml
from pogdiff_cli.project.yaml_writer import dump_yaml
from pogdiff_cli.stages.finding import Finding, named

_HEADER = "# identity: the name it has in captions and prompts\n"


@dataclass(frozen=True, kw_only=True)
class Derived:
    """The file as it is made again. ``told``: names that captions or samples vouch for, the others come of the seed."""

    text: str
    names: Mapping[str, str]
    told: int

    @property
    def digest(self) -> str:
        """Of the file's bytes."""
        return PREFIX + hashlib.sha256(self.text.encode()).hexdigest()


def look_at_names(project: Project, expected: str | None) -> Iterator[Finding]:
    """What is wrong with a ``names.yaml`` that is not as recorded; ``expected`` is None where nothing is recorded."""
    path = project.names.relative_to(project.root).as_posix()
    written = _written(project)
    if written is not None:
        if expected is not None:
            told = told_names(project)
            others = [
                f"{who}: '{told[who]}' in captions, '{name}' here"
                for who, name in written.items()
                if told.get(who, name) != name
            ]
            detail = f"is not as written ({named(others)})" if others else "is not as written, but can be read"
            yield Finding(path=path, state="changed", detail=detail, advice="edited by hand?")
        return
    there = project.names.exists()
    if expected is None and not there and not told_names(project):
        return  # nobody has a name yet
    state: Literal["damaged", "missing"] = "damaged" if there else "missing"
    detail = "cannot be read" if there else "is gone"
    derived = derive(project)
    if derived is None or (derived.told == 0 and derived.digest != expected):
        advice = "nothing here tells the names that runs were trained with: restore it from a backup"
        yield Finding(path=path, state=state, detail=detail, advice=advice)
        return
    advice = (
        "captions and samples give the same file to the last byte"
        if derived.digest == expected
        else f"{derived.told} of {len(derived.names)} names stand in captions or samples"
    )
    yield Finding(path=path, state=state, detail=detail, remedy="derive", advice=advice)


def derive(project: Project) -> Derived | None:
    """The names of all identities, in the order of the data; None where the data cannot be read."""
    try:
        records = read_records(project.images, project.metadata)
    except PogdiffError:
        return None
    told = told_names(project)
    known = {who: told[who] for who in records.identity_names if who in told}
    config = project.config
    taken = words_of([*records.texts, *records.identity_names])
    names = assign_names(records.identity_names, seed=config.seed, taken=taken, mode=config.caption.names, known=known)
    return Derived(text=_HEADER + dump_yaml(names), names=names, told=len(known))


def told_names(project: Project) -> dict[str, str]:
    """Identity -> name as most of its captions say; of identities without a caption, as the samples of runs do."""
    drawn, said = _Votes(), _Votes()
    for index in sorted((project.root / "runs").glob("*/samples/samples.json")):
        for entry in _entries(index):
            drawn.take(entry)
    for line in _text(project.captions).splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            said.take(json.loads(line))
    return {**drawn.winners(), **said.winners()}


class _Votes:
    """How often each identity is called what: one damaged line does not outvote the others."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def take(self, entry: Any) -> None:
        if isinstance(entry, dict):
            who, name = entry.get("identity"), entry.get("name")
            if isinstance(who, str) and isinstance(name, str) and name:
                self._counts.setdefault(who, Counter())[name] += 1

    def winners(self) -> dict[str, str]:
        return {who: counts.most_common(1)[0][0] for who, counts in self._counts.items()}


def _written(project: Project) -> dict[str, str] | None:
    """What the file says; None where it is no mapping of identities to names of their own."""
    try:
        values = read_yaml(project.names, at_most=MAX_OWN_BYTES).values
    except (PogdiffError, OSError, UnicodeDecodeError):
        return None
    if not isinstance(values, dict) or not values:
        return None
    if any(name is None or isinstance(name, (dict, list)) for name in values.values()):
        return None
    names = {str(identity): str(name) for identity, name in values.items()}
    return names if len(set(names.values())) == len(names) else None


def _entries(path: Path) -> list[Any]:
    try:
        values = json.loads(_text(path) or "[]")
    except (ValueError, RecursionError):
        return []
    return values if isinstance(values, list) else []


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
