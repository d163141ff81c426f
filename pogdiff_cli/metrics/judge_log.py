"""What a judge has answered, one line an answer, appended and flushed before it counts.

A key names the question: the generated image, the reference image if there is one, the repeat, the judge and the
prompt with its options. What stands in the log under a key is never asked again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pogdiff_cli.project.line_log import read_lines


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
    found: dict[str, Entry] = {}
    for entry in read_lines(path, _entry_of, what="an answer of a judge", remedy="its question is asked again"):
        found.setdefault(entry.key, entry)
    return found


def _entry_of(values: dict[str, Any]) -> Entry | None:
    if set(values) != {field.name for field in fields(Entry)}:
        return None
    entry = Entry(**values)
    plain = isinstance(entry.key, str) and isinstance(entry.answer, str)
    return entry if plain and isinstance(entry.refusal, str | None) else None
