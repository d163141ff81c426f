"""A corpus of troublesome image files, written in their real formats."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

RED, GREEN = (255, 0, 0), (0, 128, 0)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """File names under ``root``: those that must be decoded, and those refused with a word of why."""

    root: Path
    good: tuple[str, ...]
    bad: dict[str, str]


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A picture that compresses badly, so that half its bytes are not enough."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels in some 60 bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_corpus(root: Path) -> Corpus:
    """Write one file of each kind."""
    root.mkdir(parents=True, exist_ok=True)
    deep = Image.fromarray(np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, (0, 0, 255))]
    palette = photo().quantize(16)
    good = {
        "plain.png": encoded(photo(), "PNG"),
        "plain.jpg": encoded(photo(), "JPEG"),
        "plain.webp": encoded(photo(), "WEBP"),
        "plain.bmp": encoded(photo(), "BMP"),
        "plain.tif": encoded(photo(), "TIFF"),
        "plain.ppm": encoded(photo(), "PPM"),
        "plain.pgm": encoded(photo().convert("L"), "PPM"),
        "deep.png": encoded(deep, "PNG"),
        "deep.tiff": encoded(deep, "TIFF"),
        "alpha.png": encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG"),
        "grey_alpha.png": encoded(Image.new("LA", (8, 8), (0, 0)), "PNG"),
        "palette.gif": encoded(palette, "GIF"),
        "palette_alpha.png": encoded(palette, "PNG", transparency=bytes([0] * 16)),
        "cmyk.jpg": encoded(photo().convert("CMYK"), "JPEG"),
        "turned.jpg": encoded(photo(40, 30), "JPEG", exif=turned),
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "bilevel.png": encoded(photo().convert("1"), "PNG"),
        "really_png.jpg": encoded(photo(), "PNG"),
        "no_ending": encoded(photo(), "PNG"),
        "one_pixel.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
    }
    bad = {
        "truncated.jpg": (encoded(photo(200, 200), "JPEG")[:4000], "cannot be decoded"),
        "truncated.png": (encoded(photo(200, 200), "PNG")[:4000], "cannot be decoded"),
        "truncated.webp": (encoded(photo(200, 200), "WEBP")[:1000], "cannot be decoded"),
        "empty.png": (b"", "empty"),
        "text.png": (b"this is no picture", "known format"),
        "bomb.png": (png_header_only(30_000, 30_000), "bomb"),
        "large_bomb.png": (png_header_only(10_000, 10_000), "bomb"),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "known format"),
        "icon.ico": (encoded(Image.new("RGB", (16, 16)), "ICO"), "known format"),
        "float.tif": (
            encoded(Image.fromarray(np.full((4, 4), 7.5, dtype=np.float32)), "TIFF"),
            "grey levels",
        ),
    }
    for name, content in good.items():
        (root / name).write_bytes(content)
    for name, (content, _) in bad.items():
        (root / name).write_bytes(content)
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    reasons = {name: reason for name, (_, reason) in bad.items()}
    odd = {"folder.png": "not a regular file", "pipe.png": "not a regular file", "absent.png": "No such file"}
    return Corpus(root=root, good=tuple(good), bad={**reasons, **odd})
