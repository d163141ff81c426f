"""Pictures small enough to be carried by the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from pogdiff_cli.report.content import Picture

BUDGET = 9_000_000  # bytes of all pictures together, before base64 adds a third
_SIDES = (224, 176, 144, 112, 88, 64)
_BYTES_PER_PIXEL = 0.28  # of a JPEG of this quality, generously
_QUALITY = 84


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A data URI and what it shows; ``uri`` is None where the image could not be read."""

    uri: str | None
    alt: str
    width: int
    height: int


def side_for(pictures: int) -> int:
    """The largest thumbnail that keeps so many of them within the budget."""
    fitting = (side for side in _SIDES if pictures * side * side * _BYTES_PER_PIXEL <= BUDGET)
    return next(fitting, _SIDES[-1])


def thumbnailer(side: int) -> Callable[[Picture, str], Thumbnail]:
    """A function from a picture and its description to a thumbnail at most ``side`` pixels a side."""

    def make(picture: Picture, alt: str) -> Thumbnail:
        image = open_picture(picture.source)
        if image is None:
            return Thumbnail(uri=None, alt=alt, width=side, height=side)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
        encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
        return Thumbnail(uri=f"data:image/jpeg;base64,{encoded}", alt=alt, width=image.width, height=image.height)

    return make


def open_picture(source: Path | bytes) -> Image.Image | None:
    """Decoded, upright, grey or RGB, transparency on white; None where it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            opened.load()
            upright = ImageOps.exif_transpose(opened)
    except (OSError, ValueError, Image.DecompressionBombError, SyntaxError):
        return None
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return upright if upright.mode == "L" else upright.convert("RGB")
