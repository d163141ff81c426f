"""Pictures as they are sent to a vision-language model behind an endpoint."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

_LONGEST_SIDE = 1024  # pixels; what hosted models see of a picture is not larger


def png_of(image: Image.Image) -> bytes:
    """A PNG of the pixels alone, without EXIF, 1024 pixels at most on the longer side."""
    image = image.copy()
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    file = BytesIO()
    Image.fromarray(np.asarray(image)).save(file, format="PNG")
    return file.getvalue()
