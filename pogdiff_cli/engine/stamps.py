"""PNG files that say what they are of, so that a damaged or an exchanged one is told from the one that was written."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from pogdiff_cli.project.atomic import atomic_file

_KEYWORD = "pogdiff"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_stamped(image: Any, path: Path, stamp: str) -> None:
    """Write a PNG, whole or not at all, with ``stamp`` (ASCII) in a text chunk; none where it is empty."""
    told = PngInfo()
    if stamp:
        told.add_text(_KEYWORD, stamp)
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=told)
    with atomic_file(path, size=content.getbuffer().nbytes) as temporary:
        temporary.write_bytes(content.getbuffer())


def bears(path: Path, stamp: str) -> bool:
    """Whether the file is a whole PNG with this stamp: every chunk's CRC holds, and nothing follows the last."""
    try:
        chunks = list(_chunks(path.read_bytes()))
    except (OSError, ValueError, struct.error):
        return False
    return (b"tEXt", f"{_KEYWORD}\0{stamp}".encode()) in chunks


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and data of each; ValueError or struct.error where the file is not a whole PNG."""
    if not content.startswith(_SIGNATURE):
        raise ValueError("no PNG")
    at, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, at)
        data = content[at + 8 : at + 8 + length]
        (crc,) = struct.unpack_from(">I", content, at + 8 + length)
        if crc != zlib.crc32(kind + data):
            raise ValueError("a CRC does not hold")
        yield kind, data
        at += 12 + length
    if at != len(content):
        raise ValueError("something follows the end")
