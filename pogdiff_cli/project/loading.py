"""Flag > environment > ``pogdiff.yaml`` > default, and a refusal that says what was meant."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.config import Config, dotted
from pogdiff_cli.project.yaml_reader import Document, parse_scalar, read_yaml

ENVIRONMENT_PREFIX = "POGDIFF_"
#: Variables of the program that are no settings: files of templates, and what its launcher tells its workers.
_NO_SETTINGS = ("CACHE", "ASSETS", "LAUNCH_FOLDER")


def load_config(
    path: Path, *, overrides: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Config:
    """Read one configuration; ``overrides`` maps dotted keys to values and wins over all else."""
    document = read_yaml(path)
    if document.values is not None and not isinstance(document.values, dict):
        raise PogdiffError(f"{path} must hold keys and values.", exit_code=Exit.USAGE)
    # a section whose keys are all commented out is an empty section
    values: dict[str, Any] = {key: value for key, value in (document.values or {}).items() if value is not None}
    origin: dict[str, str] = {}
    for key, value in _from_environment(os.environ if environment is None else environment).items():
        _put(values, key, value)
        origin[key] = f"{ENVIRONMENT_PREFIX}{key.replace('.', '__').upper()}"
    for key, value in (overrides or {}).items():
        _put(values, key, value)
        origin[key] = f"--set {key}"
    config = validate(values, document=document, origin=origin)
    _check_runs(config, document, values)
    return config


def _check_runs(config: Config, document: Document, values: Mapping[str, Any]) -> None:
    """Refuse what the settings of ``runs`` get wrong now, not once their turn has come."""
    for name, settings in config.runs.items():
        own = copy.deepcopy(dict(values))
        origin = {}
        for key, value in settings.items():
            _put(own, key, value)
            origin[key] = _where(f"runs.{name}.{key}", document, {})
        validate(own, document=document, origin=origin)


def validate(values: Mapping[str, Any], *, document: Document, origin: Mapping[str, str]) -> Config:
    """Turn plain values into a Config, or refuse with source, line and the nearest known key or value."""
    try:
        return Config.model_validate(values)
    except ValidationError as problem:
        lines = [_explain(error, document, origin) for error in problem.errors()]
        raise PogdiffError("\n".join(lines), exit_code=Exit.USAGE) from None


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """``["train.a1=0.5"]`` -> ``{"train.a1": 0.5}``; values are read like the file's."""
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise PogdiffError(
                f"--set {assignment}: not KEY=VALUE.", hint="For instance --set train.a1=0.5", exit_code=Exit.USAGE
            )
        parsed[key.strip()] = parse_scalar(value, source=f"--set {key.strip()}")
    return parsed


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """``POGDIFF_TRAIN__A1=0.5`` -> ``{"train.a1": 0.5}``; a double underscore stands for the dot."""
    known = {key.replace(".", "__").upper(): key for key in dotted(Config(), "", operational="with")}
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name in known:
            found[known[name]] = parse_scalar(text, source=variable)
        elif name not in _NO_SETTINGS:
            near = _nearest(name, [*known, *_NO_SETTINGS[:1]])
            meant = f"Did you mean {ENVIRONMENT_PREFIX}{near}?" if near else "Every name that begins so is one of ours."
            hint = f"{meant} To be rid of it:  unset {variable}"
            raise PogdiffError(f"The variable {variable} names no setting.", hint=hint, exit_code=Exit.USAGE)
    return found


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    if isinstance(value, dict) and _section([*parents, leaf]) is not None:
        for below, inner in value.items():  # {train: {a1: 2}} says nothing about the rest of train
            _put(values, f"{key}.{below}", inner)
        return
    place = values
    for parent in parents:
        below = place.get(parent)
        below = dict(below) if isinstance(below, dict) else {}
        place[parent] = below
        place = below
    place[leaf] = value


def _explain(error: Any, document: Document, origin: Mapping[str, str]) -> str:
    path = ".".join(str(part) for part in error["loc"] if not isinstance(part, int))
    where = _where(path, document, origin)
    if error["type"] == "extra_forbidden":
        *parents, leaf = path.split(".")
        section = _section(parents)
        near = _nearest(leaf, section.model_fields) if section is not None else None
        return f"{where}: unknown key '{path}'." + (f" Did you mean '{'.'.join([*parents, near])}'?" if near else "")
    if error["type"] == "value_error" and isinstance(error["input"], dict):
        return f"{where}: {path}: {_lower(error['msg'])}."
    shown = "not what it must be" if _is_secret(path) else repr(error["input"])
    text = f"{where}: '{path}' is {shown}: {_lower(error['msg'])}."
    expected = error.get("ctx", {}).get("expected")
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        near = _nearest(error["input"], str(expected).replace("'", "").replace(" or ", ", ").split(", "))
        text += f" Did you mean '{near}'?" if near else ""
    return text


def _where(path: str, document: Document, origin: Mapping[str, str]) -> str:
    for key, source in origin.items():
        if path == key or path.startswith(f"{key}.") or key.startswith(f"{path}."):
            return source
    line = document.lines.get(path)
    return f"{document.source}:{line}" if line else document.source


def _section(parents: Sequence[str]) -> type[BaseModel] | None:
    section: Any = Config
    for parent in parents:
        info = section.model_fields.get(parent)
        section = info.annotation if info is not None else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return None
    return section if isinstance(section, type) else None


def _is_secret(path: str) -> bool:
    """Whether what stands there may be a secret that was written into the wrong place."""
    *parents, leaf = path.split(".")
    section = _section(parents)
    info = section.model_fields.get(leaf) if section is not None else None
    extra = info.json_schema_extra if info is not None else None
    return isinstance(extra, dict) and bool(extra.get("secret"))


def _nearest(word: str, known: Any) -> str | None:
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
