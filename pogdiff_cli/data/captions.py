"""Captions: the place of the name in them, and the file that holds them, one line an image."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pogdiff_cli.data.wording import CaptionRequest, check_prompts, render, template_captions
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import atomic_file
from pogdiff_cli.project.line_log import read_lines

__all__ = [
    "Caption",
    "CaptionRequest",
    "check_prompts",
    "ensure_name",
    "file_captions",
    "name_end",
    "name_is_cut",
    "read_captions",
    "render",
    "template_captions",
    "write_captions",
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
    lines = read_lines(path, _caption_of, what="a caption", remedy="the image is captioned again")
    return {caption.file_name: caption for caption in lines}


def _caption_of(values: dict[str, Any]) -> Caption | None:
    if set(values) != set(Caption.__dataclass_fields__) or not all(isinstance(v, str) for v in values.values()):
        return None
    return Caption(**values)


def write_captions(path: Path, captions: Iterable[Caption]) -> None:
    """The whole file at once, one line an image."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(caption), ensure_ascii=False) + "\n" for caption in captions)
