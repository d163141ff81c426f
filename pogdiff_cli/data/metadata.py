"""Lines of a metadata file: .jsonl, .csv or .parquet, each with the place it stands at."""

from __future__ import annotations

import csv
import difflib
import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pogdiff_cli.errors import Exit, PogdiffError

COLUMNS = ("file_name", "identity", "text", "split")
MAX_IDENTITY = 200  # characters
MAX_LINE = 1024**2  # bytes of a line: more is no line of metadata
_PARQUET_ROWS = 4096  # at a time: a dictionary lets a small file promise long texts
_ALIASES = ("filename", "file", "image", "image_path", "path", "img")  # what other tools call file_name


def clean_text(text: str) -> str:
    """NFC, white space (line ends included) folded to single spaces; a control character is a ValueError."""
    folded = " ".join(unicodedata.normalize("NFC", text).split())
    if folded.isprintable():  # all but a few texts, told apart without looking at each character
        return folded
    for character in folded:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(f"holds the control character U+{ord(character):04X}")
    return folded


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of metadata; ``where`` is its file and line number as an error shows them."""

    where: str
    values: Mapping[str, Any]

    def error(self, message: str, *, hint: str | None = None) -> PogdiffError:
        """An error that names this line."""
        return PogdiffError(f"{self.where}: {message}", hint=hint, exit_code=Exit.DATA)

    def text(self, column: str) -> str:
        """The value as clean text, whole numbers too; "" where it is missing or, in an attribute, no text."""
        value = self.values.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is None or (column not in COLUMNS and not isinstance(value, str)):
            return ""
        if not isinstance(value, str):
            raise self.error(f"{column} is {type(value).__name__}, not text.")
        try:
            return clean_text(value)
        except ValueError as error:
            raise self.error(f"{column} {error}.") from error

    def required(self, column: str) -> str:
        """The value to the letter: a file name is not normalised."""
        value = self.values.get(column)
        if value is not None and not isinstance(value, str):
            raise self.error(f"{column} is {type(value).__name__}, not text.")
        if value is None:
            raise self.error(f"column {column!r} is missing.", hint=_did_you_mean(column, self.values))
        return value

    @property
    def other_columns(self) -> list[str]:
        """Columns that are attributes of the image."""
        return [column for column in self.values if column not in COLUMNS]


def metadata_lines(path: Path) -> Iterator[Line]:
    """The lines of a metadata file; an unreadable file or line is an error that names it."""
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise PogdiffError(
            f"{path} is no metadata file that can be read.",
            hint=f"Give one of {', '.join(readers)}.",
            exit_code=Exit.DATA,
        )
    if not path.is_file():
        raise PogdiffError(
            f"The metadata file {path} does not exist.",
            hint="Set data.metadata, or leave it empty for a folder per identity.",
            exit_code=Exit.DATA,
        )
    seen: set[tuple[str, ...]] = set()  # the lines of a file mostly have the same columns
    for line in reader(path):
        columns = tuple(line.values)
        if columns not in seen:
            _refuse_unprintable(line)
            _refuse_misspelt(line)
            seen.add(columns)
        yield line


def _jsonl(path: Path) -> Iterator[Line]:
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    # split at b"\n" alone: text may hold U+2028, at which str.splitlines would break
    with path.open("rb") as file:
        # never more than a line's length at a time, however long the file says that its line is
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            line = Line(where=f"{path}:{number}", values={})
            if len(raw) > MAX_LINE:
                raise line.error(f"a line of more than {MAX_LINE} bytes.", hint="One object a line.")
            content = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if not content.strip():
                continue
            try:
                values = decoder.decode(content.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise line.error(f"not a JSON object: {error}.", hint="One object a line.") from error
            if not isinstance(values, dict):
                raise line.error("not a JSON object.", hint='Write {"file_name": ..., "identity": ...}.')
            yield Line(where=line.where, values=values)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice")
    return values


def _csv(path: Path) -> Iterator[Line]:
    number = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_short_lines(file, path), strict=True)
            header = [column.strip() for column in next(reader, [])]
            if len(set(header)) != len(header):
                raise PogdiffError(f"{path}:1: a column stands twice.", exit_code=Exit.DATA)
            for cells in reader:
                number = reader.line_num
                if not cells:
                    continue
                line = Line(where=f"{path}:{number}", values=dict(zip(header, cells, strict=False)))
                if len(cells) != len(header):
                    raise line.error(
                        f"{len(cells)} cells under {len(header)} columns.",
                        hint="Quote cells that hold a comma.",
                    )
                yield line
    except (csv.Error, UnicodeDecodeError) as error:
        raise PogdiffError(
            f"{path}: cannot be read after line {number}: {error}.",
            hint="Save it as UTF-8 CSV.",
            exit_code=Exit.DATA,
        ) from error


def _short_lines(file: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), ""), start=1):
        if len(line) > MAX_LINE:
            raise PogdiffError(f"{path}:{number}: a line of more than {MAX_LINE} characters.", exit_code=Exit.DATA)
        yield line


def _parquet(path: Path) -> Iterator[Line]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PogdiffError(
            f"Reading {path} needs pyarrow.", hint="Run: pip install pyarrow", exit_code=Exit.MISSING
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) != len(names):
                raise PogdiffError(f"{path}: a column stands twice.", exit_code=Exit.DATA)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Line(where=f"{path}: row {number}", values=values)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        raise PogdiffError(f"{path} cannot be read as Parquet: {error}.", exit_code=Exit.DATA) from error


def _did_you_mean(column: str, values: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(column, list(values), n=1, cutoff=0.6)
    near = near or [alias for alias in _ALIASES if alias in values and column == "file_name"]
    if near:
        return f"Did you mean to call {near[0]!r} {column!r}?"
    return f"The columns are {', '.join(COLUMNS)}; this line has {', '.join(values) or 'none'}."


def _refuse_unprintable(line: Line) -> None:
    for column in line.other_columns:
        try:
            clean_text(column)
        except ValueError as error:
            raise line.error(f"the column {column!r} {error}.") from error


def _refuse_misspelt(line: Line) -> None:
    """A misspelt optional column would be ignored in silence, and with it the user's captions or split."""
    absent = [column for column in COLUMNS if column not in line.values]
    for given in line.other_columns:
        near = difflib.get_close_matches(given.casefold(), absent, n=1, cutoff=0.85)
        if near:
            raise line.error(f"column {given!r} is unknown.", hint=f"Did you mean {near[0]!r}?")
