"""What captioners have said, one line an answer, appended and flushed before it counts.

An answer is filed by the picture's content and by the question, not by where the picture lies: images that are added,
renamed or moved to another identity cost nothing more than themselves.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pogdiff_cli.project.line_log import read_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """One line of descriptions.jsonl: what was asked, by its digest, and the answer as it came."""

    key: str
    image: str  # digest of the picture's file
    captioner: str
    name: str  # that the captioner was told, "" for none
    text: str


def key_of(*, image: str, question: str) -> str:
    """The digest under which an answer is filed; ``question`` is the digest of captioner, instruction and options."""
    return hashlib.sha256(json.dumps([image, question], ensure_ascii=True).encode()).hexdigest()


def read_descriptions(path: Path) -> dict[str, Description]:
    """Answers by key, the last one of each; only the last line may be torn."""
    lines = read_lines(path, _description_of, what="a captioner's answer", remedy="its picture is described again")
    return {description.key: description for description in lines}


def _description_of(values: dict[str, Any]) -> Description | None:
    if set(values) != set(Description.__dataclass_fields__) or not all(isinstance(v, str) for v in values.values()):
        return None
    return Description(**values)
