"""Answers that raters exported, as JSON or CSV: files from elsewhere, of which nothing is believed unchecked."""

from __future__ import annotations

import csv
import io
import json
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError

SCHEMA = "ratings/1"  # the page that raters see names no program and no run
COLUMNS = ("page", "rater", "exported", "id", "value", "seconds")
MAX_FILE = 8 * 1024**2
MAX_FILES = 1000
MAX_ANSWERS = 100_000
MAX_NAME = 80
_ID = 64  # characters
_FORMULA = ("=", "+", "-", "@")


class BadExport(ValueError):
    """A file that holds no usable answers; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """One rater's answers to one page, by item id; the last answer to an item counts."""

    source: str
    page: str
    rater: str
    exported: str
    answers: Mapping[str, int]
    repeated: int = 0  # answers that a later one to the same item replaced
    malformed: int = 0  # entries that are no answer


@dataclass(frozen=True, kw_only=True)
class Exports:
    """What could be read, and what could not, by file name."""

    read: tuple[Export, ...]
    refused: Mapping[str, str]


def answer_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are, folders as the .json and .csv files directly inside them."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(item for item in path.iterdir() if item.suffix.lower() in (".json", ".csv"))
        elif path.exists():
            found.append(path)
        else:
            raise PogdiffError(f"There is no file {path}.", exit_code=Exit.USAGE)
    if not found:
        raise PogdiffError(
            "There are no answers to merge.",
            hint="Name the files that raters exported, or a folder of them.",
            exit_code=Exit.USAGE,
        )
    if len(found) > MAX_FILES:
        raise PogdiffError(f"More than {MAX_FILES} files of answers.", exit_code=Exit.DATA)
    return found


def read_exports(paths: Iterable[Path]) -> Exports:
    """Read every file; one that cannot be used is named with the reason, and the others are read on."""
    read, refused = [], {}
    for path in paths:
        try:
            read.append(read_export(path))
        except BadExport as problem:
            refused[path.name] = str(problem)
    return Exports(read=tuple(read), refused=refused)


def read_export(path: Path) -> Export:
    """One file, or :class:`BadExport`. Content decides the format, not the ending."""
    text = _text(path)
    return _from_json(text, path.name) if text.lstrip()[:1] in ("{", "[") else _from_csv(text, path.name)


def rater_name(value: object) -> str:
    """A name in NFC with single spaces, or :class:`BadExport`; control characters could forge a terminal's lines."""
    if not isinstance(value, str):
        raise BadExport("the rater's name is no text")
    name = " ".join(unicodedata.normalize("NFC", value).split())
    if not name or len(name) > MAX_NAME:
        raise BadExport(f"the rater's name has no or more than {MAX_NAME} characters")
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in name):
        raise BadExport("the rater's name holds control characters")
    return name


def _text(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadExport("not a regular file")  # opening a FIFO would wait for ever
        if status.st_size > MAX_FILE:
            raise BadExport(f"more than {MAX_FILE // 1024**2} MiB")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadExport(f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadExport("not UTF-8") from error


def _from_json(text: str, source: str) -> Export:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadExport("damaged JSON") from error
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise BadExport("not an export of answers")
    entries = body.get("answers")
    if not isinstance(entries, list):
        raise BadExport("it holds no list of answers")
    return _export(source, body, entries)


def _from_csv(text: str, source: str) -> Export:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise BadExport("damaged CSV") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise BadExport("not an export of answers")
    whole = [dict(zip(COLUMNS, map(_plain, row), strict=True)) for row in rows[1:] if len(row) == len(COLUMNS)]
    if not whole:
        raise BadExport("it holds no answers")
    heads = {(row["page"], row["rater"]) for row in whole}
    if len(heads) > 1:
        raise BadExport("it mixes raters or pages")
    entries = [{"id": row["id"], "value": _integer(row["value"])} for row in whole]
    broken = [None] * (len(rows) - 1 - len(whole))
    return _export(source, whole[-1], [*entries, *broken])


def _export(source: str, head: Mapping[str, Any], entries: list[Any]) -> Export:
    if len(entries) > MAX_ANSWERS:
        raise BadExport(f"more than {MAX_ANSWERS} answers")
    page, exported = head.get("page"), head.get("exported")
    if not isinstance(page, str) or not page or len(page) > _ID * 2:
        raise BadExport("it names no page")
    answers: dict[str, int] = {}
    usable = 0
    for entry in entries:
        item, value = (entry.get("id"), entry.get("value")) if isinstance(entry, dict) else (None, None)
        if _is_answer(item, value):
            usable += 1
            answers[str(item)] = int(value)  # type: ignore[arg-type]
    return Export(
        source=source,
        page=page,
        rater=rater_name(head.get("rater")),
        exported=exported[:_ID] if isinstance(exported, str) else "",
        answers=answers,
        repeated=usable - len(answers),
        malformed=len(entries) - usable,
    )


def _is_answer(item: object, value: object) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return isinstance(item, str) and 0 < len(item) <= _ID and whole


def _plain(cell: str) -> str:
    """The cell without the apostrophe that keeps a spreadsheet from running it."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def _integer(cell: str) -> int | None:
    return int(cell) if cell.isascii() and cell.isdigit() and len(cell) < 10 else None
