"""Files of JSON lines that only grow: what was appended is on the disk, and only the last line may be torn."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.digests import digest_value

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def read_lines(path: Path, parse: Callable[[dict[str, Any]], T | None], *, what: str, remedy: str) -> Iterator[T]:
    """What ``parse`` makes of each whole line; a line of which it makes nothing is an error that names it.

    ``what`` says what a line should be, and ``remedy`` what happens once a bad one is removed.
    """
    if not path.exists():
        return
    # what follows the last newline was being written when the program died, even if it happens to parse
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        value = _parsed(line, parse)
        if value is None:
            raise PogdiffError(f"{path}:{number}: not {what}.", hint=f"Remove the line; {remedy}.", exit_code=Exit.DATA)
        yield value


def _parsed(line: bytes, parse: Callable[[dict[str, Any]], T | None]) -> T | None:
    try:
        values = json.loads(line)
        if not isinstance(values, dict) or ("check" in values and values.pop("check") != _check(values)):
            return None
        return parse(values)
    except (ValueError, TypeError, RecursionError):
        return None


def _check(values: dict[str, Any]) -> str:
    """What tells a line that was appended from one in which a bit has flipped since. Older lines have none."""
    return digest_value(values).removeprefix("sha256:")[:16]


def _line(values: dict[str, Any]) -> str:
    return json.dumps({**values, "check": _check(values)}, ensure_ascii=False) + "\n"


class LineWriter:
    """Appends dataclasses from any thread, each call safely on disk when it returns; a torn last line goes first."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = path.open("ab+", buffering=0)  # what fails to be written must not come later
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)
        os.fsync(self._file.fileno())
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # a file that its folder forgets holds nothing
        finally:
            os.close(folder)

    def append(self, *values: DataclassInstance) -> None:
        """Write a line each and flush them to the disk, or leave the file as it was."""
        lines = "".join(_line(asdict(value)) for value in values)
        data = lines.encode("utf-8", "surrogatepass")
        with self._lock:
            before = self._file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except OSError:  # a full disk: half a line would spoil the one after it
                self._file.truncate(before)
                raise

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
