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


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels in some 60 bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_with(*chunks: bytes, depth: int = 8, kind: int = 2, row: bytes = b"\x80" * 12) -> bytes:
    """A PNG of 4x4 pixels with further chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * 4))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def patched(data: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    """The bytes with ``new`` at ``offset`` from the first ``mark``."""
    start = data.index(mark) + offset
    return data[:start] + new + data[start + len(new) :]


def _odd_but_good() -> dict[str, bytes]:
    """Files that are strange in what does not matter."""
    full = Image.Exif()
    full[0x0112], full[0x9286] = 6, b"x" * 60_000
    loop = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\0\0\0\0"
    grey = Image.new("L", (8, 8))
    frames = [Image.new("L", (8, 8), number % 256) for number in range(2000)]
    turned = Image.Exif()
    turned[0x0112] = 65_535
    plain = {
        "icc_junk.png": png_with(chunk(b"iCCP", b"x\0\0" + zlib.compress(b"junk"))),
        "icc_damaged.png": png_with(chunk(b"iCCP", b"x\0\0nonsense")),
        "icc_large.jpg": encoded(photo(), "JPEG", icc_profile=b"j" * 3_000_000),
        "exif_huge.jpg": encoded(photo(), "JPEG", exif=full),
        "exif_loop.jpg": encoded(photo(), "JPEG", exif=loop),
        "exif_junk.png": png_with(chunk(b"eXIf", b"junkjunk")),
        "exif_unknown_turn.jpg": encoded(photo(), "JPEG", exif=turned),
        "many_frames.gif": encoded(grey, "GIF", save_all=True, append_images=frames, duration=[20, 30] * 1000 + [20]),
        "moving.png": encoded(grey, "PNG", save_all=True, append_images=frames[:3]),
        "trailing.png": encoded(photo(), "PNG") + b"<script>alert(1)</script>" * 100,
        "deep_colour.png": png_with(depth=16, row=b"\x80\x00" * 12),
        "lab.tif": encoded(photo().convert("LAB"), "TIFF"),
        "wide.png": encoded(Image.new("RGB", (640, 10)), "PNG"),
    }
    kinds = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "lzma", "zstd")
    pages = {kind: photo().convert("1") if kind == "group4" else photo() for kind in kinds}
    return plain | {f"{kind}.tif": encoded(page, "TIFF", compression=kind) for kind, page in pages.items()}


def _odd_and_bad() -> dict[str, tuple[bytes, str]]:
    """Files that would cost memory, or hold something else than a picture."""
    gif, bmp, tiff = (encoded(photo().convert("P"), form) for form in ("GIF", "BMP", "TIFF"))
    jpeg = encoded(photo(), "JPEG")
    bomb = zlib.compress(b"a" * 100_000_000)
    kind = struct.pack("<HHI", 259, 3, 1)  # TIFF's compression
    large = struct.pack("<HH", 65_000, 65_000)
    return {
        "text_bomb.png": (png_with(chunk(b"zTXt", b"k\0\0" + bomb)), "too large"),
        "unicode_text_bomb.png": (png_with(chunk(b"iTXt", b"k\0\1\0\0\0" + bomb)), "too large"),
        "icc_bomb.png": (png_with(chunk(b"iCCP", b"x\0\0" + bomb)), "too large"),
        "many_texts.png": (png_with(*[chunk(b"tEXt", b"k\0" + b"a" * 1_000_000)] * 70), "text chunks"),
        "no_width.png": (png_header_only(0, 5), "known format"),
        "no_size.ppm": (b"P6 0 0 255\n", "known format"),
        "negative.ppm": (b"P6 -4 4 255\n", "known format"),
        "promise.ppm": (b"P6 9000 9000 255\nabc", "cannot be decoded"),
        "long_number.ppm": (b"P3 2 2 255\n" + b"9" * 1_000_000, "cannot be decoded"),
        "no_size.jpg": (patched(jpeg, b"\xff\xc0", 5, b"\0\0\0\0"), "known format"),
        "no_size.bmp": (patched(bmp, b"BM", 18, bytes(8)), "known format"),
        "largest.bmp": (patched(bmp, b"BM", 18, struct.pack("<ii", 2**31 - 1, 2**31 - 1)), "bomb"),
        "screen_bomb.gif": (patched(gif, b"GIF", 6, large), "bomb"),
        "frame_bomb.gif": (patched(gif, b",\0\0\0\0", 5, large), "bomb"),
        "unknown_compression.tif": (patched(tiff, kind, 8, struct.pack("<H", 65_000)), "known format"),
        "wrong_compression.tif": (patched(tiff, kind, 8, struct.pack("<H", 50_000)), "cannot be decoded"),
        "no_palette.png": (png_with(kind=3, row=b"\x05" * 4), "cannot be decoded"),
        "drawing.psd": (b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(300), "known format"),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n", "known format"),
        "entity.svg": (b"<!DOCTYPE s [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg>&x;</svg>", "known format"),
        "thread.png": (encoded(Image.new("RGB", (6500, 100)), "PNG"), "times the other"),
        "negative_grey.tif": (encoded(Image.fromarray(np.array([[-1, 5]], dtype=np.int32)), "TIFF"), "grey levels"),
    }


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
    good |= _odd_but_good()
    bad |= _odd_and_bad()
    for name, content in good.items():
        (root / name).write_bytes(content)
    for name, (content, _) in bad.items():
        (root / name).write_bytes(content)
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    reasons = {name: reason for name, (_, reason) in bad.items()}
    odd = {"folder.png": "not a regular file", "pipe.png": "not a regular file", "absent.png": "No such file"}
    return Corpus(root=root, good=tuple(good), bad={**reasons, **odd})
