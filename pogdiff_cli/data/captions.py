"""Captions: the place of the name in them, and the file that holds them, one line an image."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from pogdiff_cli.data.wording import CaptionRequest, check_prompts, render, template_captions
from pogdiff_cli.errors import Exit, PogdiffError

__all__ = [
    "Caption",
    "CaptionRequest",
    "CaptionWriter",
    "check_prompts",
    "ensure_name",
    "file_captions",
    "name_end",
    "name_is_cut",
    "read_captions",
    "render",
    "template_captions",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One line of captions.jsonl."""

    file_name: str
    identity: str
    name: str
    caption: str
    captioner: str


def file_captions(requests: Sequence[CaptionRequest]) -> list[str]:
    """The user's own captions; an image without one is an error."""
    for request in requests:
        if not request.text:
            raise PogdiffError(
                f"{request.file_name} has no caption.",
                hint="Give it a text in the metadata or a .txt file, or set caption.captioner to 'template'.",
                exit_code=Exit.DATA,
            )
    return [request.text for request in requests]


def ensure_name(caption: str, name: str, count_tokens: Callable[[str], int], limit: int) -> str:
    """The caption, with ``name`` put in front unless it occurs within the first ``limit`` tokens.

    ``count_tokens`` counts as the text encoder's tokenizer does, special tokens included; what lies beyond
    its ``limit`` the encoder never sees.
    """
    if count_tokens(name) > limit:
        raise PogdiffError(
            f"The name {name!r} alone exceeds the {limit} tokens that the text encoder reads.",
            exit_code=Exit.DATA,
        )
    if name_end(caption, name) is not None and not name_is_cut(caption, name, count_tokens, limit):
        return caption
    return f"{name}, {caption}" if caption else name


def name_end(caption: str, name: str) -> int | None:
    """Where the first word-bounded ``name`` ends, whatever its case; None where there is none."""
    found = re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", caption, re.IGNORECASE)
    return None if found is None else found.end()


def name_is_cut(caption: str, name: str, count_tokens: Callable[[str], int], limit: int) -> bool:
    """Whether the caption holds the name, but only beyond the tokenizer's limit."""
    end = name_end(caption, name)
    return end is not None and count_tokens(caption[:end]) > limit


def read_captions(path: Path) -> dict[str, Caption]:
    """Captions by file name, the last one said of each; only the last line may be torn."""
    if not path.exists():
        return {}
    captions: dict[str, Caption] = {}
    raw = path.read_bytes()
    lines = raw.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        caption = _caption_of(line)
        if caption is None and number < len(lines):
            raise PogdiffError(
                f"{path}:{number}: not a caption.",
                hint="Remove the line; the image is captioned again.",
                exit_code=Exit.DATA,
            )
        # a last line without its newline was being written when the program died, even if it happens to parse
        if caption is not None and number < len(lines):
            captions[caption.file_name] = caption
    return captions


def _caption_of(line: bytes) -> Caption | None:
    try:
        values = json.loads(line)
        if set(values) != set(Caption.__dataclass_fields__) or not all(isinstance(v, str) for v in values.values()):
            return None
        return Caption(**values)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


class CaptionWriter:
    """Appends captions, each batch safely on disk; a torn last line is cut off first."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)

    def append(self, captions: Iterable[Caption]) -> None:
        """Write one line each, then flush to the disk."""
        lines = [json.dumps(asdict(caption), ensure_ascii=False) + "\n" for caption in captions]
        self._file.write("".join(lines).encode("utf-8"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> CaptionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
