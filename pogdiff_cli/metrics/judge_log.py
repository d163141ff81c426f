"""What a judge has answered, one line an answer, appended and flushed before it counts.

A key names the question: the generated image, the reference image if there is one, the repeat, the judge and the
prompt with its options. What stands in the log under a key is never asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

from pogdiff_cli.errors import Exit, PogdiffError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of judge.jsonl: the question by its digests, and the answer as it came."""

    key: str
    image: str  # digest of the generated image's file
    reference: str | None  # digest of the real one's
    repeat: int
    model: str
    prompt: str  # digest of the text and the options
    answer: str
    refusal: str | None
    served_by: str | None  # the model as the server names it
    prompt_tokens: int | None
    completion_tokens: int | None
    time: str


def key_of(*, image: str, reference: str | None, repeat: int, model: str, prompt: str) -> str:
    """The digest under which an answer is filed; ``model`` names the weights as closely as is known."""
    text = json.dumps([image, reference, repeat, model, prompt], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_log(path: Path) -> dict[str, Entry]:
    """Answers by key, the first one of each; only the last line may be torn."""
    if not path.exists():
        return {}
    found: dict[str, Entry] = {}
    *lines, _torn = path.read_bytes().split(b"\n")  # what follows the last newline was being written
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _entry_of(line)
        if entry is None:
            raise PogdiffError(
                f"{path}:{number}: not an answer of a judge.",
                hint="Remove the line; its question is asked again.",
                exit_code=Exit.DATA,
            )
        found.setdefault(entry.key, entry)
    return found


def _entry_of(line: bytes) -> Entry | None:
    try:
        values = json.loads(line)
        if set(values) != {field.name for field in fields(Entry)}:
            return None
        entry = Entry(**values)
    except (ValueError, TypeError, RecursionError):
        return None
    plain = isinstance(entry.key, str) and isinstance(entry.answer, str)
    return entry if plain and isinstance(entry.refusal, str | None) else None


class LogWriter:
    """Appends answers from any thread, each safely on disk when ``append`` returns; a torn last line goes first."""

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

    def append(self, entry: Entry) -> None:
        """Write one line and flush it to the disk, or leave the file as it was."""
        line = (json.dumps(asdict(entry), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        with self._lock:
            before = self._file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except OSError:  # a full disk: half a line would spoil the one after it
                self._file.truncate(before)
                raise

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
