"""A contact sheet: one row an identity, one column a seed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pogdiff_cli.report.content import Picture
from pogdiff_cli.report.pictures import open_picture

_GAP, _MARGIN, _INK, _MUTED, _EMPTY = 6, 16, "#1d1f22", "#75797f", "#eceef0"


@dataclass(frozen=True, kw_only=True)
class Row:
    """An identity's label and its pictures; a picture's seed says in which column it stands."""

    label: str
    pictures: tuple[Picture, ...]


def contact_sheet(rows: Sequence[Row], *, columns: int = 10, cell: int = 96) -> Image.Image:
    """The first ``columns`` seeds, ascending to the right; a grey cell where an image is missing."""
    seeds = sorted({p.seed for row in rows for p in row.pictures if p.seed is not None})[:columns]
    font = _font(13)
    labels = [_shortened(row.label, font, 180) for row in rows]
    left = _MARGIN + int(max((font.getlength(label) for label in labels), default=0)) + 12
    top = _MARGIN + 20
    width = left + len(seeds) * (cell + _GAP) - _GAP + _MARGIN
    height = top + len(rows) * (cell + _GAP) - _GAP + _MARGIN
    sheet = Image.new("RGB", (max(width, left + _MARGIN), max(height, top + _MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, seed in enumerate(seeds):
        middle = left + column * (cell + _GAP) + cell / 2
        draw.text((middle, _MARGIN + 6), f"seed {seed}", fill=_MUTED, font=font, anchor="mm")
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + index * (cell + _GAP)
        draw.text((_MARGIN, y + cell / 2), label, fill=_INK, font=font, anchor="lm")
        _paste_row(sheet, {p.seed: p for p in row.pictures}, seeds, left=left, y=y, cell=cell)
    return sheet


def write_contact_sheet(rows: Sequence[Row], path: Path, *, columns: int = 10, cell: int = 96) -> None:
    """The sheet as a PNG."""
    contact_sheet(rows, columns=columns, cell=cell).save(path, "PNG", optimize=True)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The face that comes with matplotlib knows more scripts than Pillow's own; matplotlib is not imported."""
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        face = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if face.is_file():
            return ImageFont.truetype(face, size)
    return ImageFont.load_default(size)


def _paste_row(
    sheet: Image.Image,
    pictures: Mapping[int | None, Picture],
    seeds: Sequence[int],
    *,
    left: int,
    y: int,
    cell: int,
) -> None:
    for column, seed in enumerate(seeds):
        x = left + column * (cell + _GAP)
        image = open_picture(pictures[seed].source) if seed in pictures else None
        if image is None:
            sheet.paste(_EMPTY, (x, y, x + cell, y + cell))
            continue
        scale = cell / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        fitted = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        sheet.paste(fitted, (x + (cell - size[0]) // 2, y + (cell - size[1]) // 2))


def _shortened(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, limit: int) -> str:
    flat = " ".join(label.split()) or "(no name)"
    if font.getlength(flat) <= limit:
        return flat
    while len(flat) > 1 and font.getlength(flat + "...") > limit:
        flat = flat[:-1]
    return flat.rstrip() + "..."
