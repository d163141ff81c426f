"""The part of ``init`` that makes one of the paper's sets from a published data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pogdiff_cli.data.recipes import Chosen, Group, Recipe, choose, find_images
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import write_text

METADATA = "data/metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a recipe chose."""

    lines: tuple[Chosen, ...]

    @property
    def identities(self) -> int:
        """How many there are."""
        return len({line.identity for line in self.lines})


def read_recipe(values: Mapping[str, Any]) -> Recipe:
    """The ``recipe`` of a template."""
    groups = tuple(Group(**group) for group in values["groups"])
    return Recipe(**{**values, "groups": groups})


def select(recipe: Recipe, images: Path | None, *, template: str, seed: int) -> Selection:
    """Choose from the data set; nothing is written."""
    if images is None:
        raise PogdiffError(
            f"The template '{template}' chooses from your copy of {recipe.source}.",
            hint=f"Type: pogdiff init PATH --template {template} --images DIR",
            exit_code=Exit.USAGE,
        )
    return Selection(lines=tuple(choose(find_images(images, recipe).images, recipe, seed=seed)))


def write_selection(root: Path, selection: Selection) -> None:
    """``data/metadata.jsonl``: one line an image."""
    (root / METADATA).parent.mkdir(parents=True, exist_ok=True)
    write_text(root / METADATA, "".join(_line(line) for line in selection.lines))


def _line(line: Chosen) -> str:
    values = {"file_name": line.file_name, "identity": line.identity, "split": line.split, **line.attributes}
    return json.dumps(values, ensure_ascii=False) + "\n"
