"""Pictures: strict decoding of whatever a file holds, and the arrays a model takes."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pogdiff_cli.data.buckets import bucket_of, bucket_sizes, nearest_buckets
from pogdiff_cli.errors import Exit, PogdiffError

Resize = Literal["crop", "pad", "stretch", "bucket"]
# formats that can be read, and the endings they may have; MPO is what many phones write as .jpg
FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pnm", ".pbm"),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_ASPECT = 64  # sides' ratio: scaled to a model's size, a thread of pixels would fill the memory
MAX_FILE = 512 * 1024**2  # bytes: an image of the largest size that Pillow decodes, uncompressed
_WHITE = (255, 255, 255)
_open_lock = threading.Lock()  # warning filters are global: two threads must not swap them at once


class BadImage(ValueError):
    """A file that is no usable image; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A picture in RGB, upright, and what had to be done to it."""

    image: Image.Image
    notes: tuple[str, ...]


def decode(path: Path) -> Decoded:
    """Read one image file completely, or raise :class:`BadImage` with the reason."""
    return decode_bytes(read_bytes(path), path.name)


def decode_known(path: Path, sha256: str) -> Image.Image:
    """The picture of a file that has been read before; one that has changed would be filed under another's digest."""
    again = "Type the same command again: what depends on it is made anew."
    try:
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() == sha256:
            return decode_bytes(data, path.name).image
    except BadImage as problem:
        what = "has vanished" if not path.exists() else f"is no image any more ({problem})"
        raise PogdiffError(f"{path} {what} since it was last read.", hint=again, exit_code=Exit.DATA) from problem
    raise PogdiffError(f"{path} has changed since it was last read.", hint=again, exit_code=Exit.DATA)


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of a sensible size; opening a FIFO would wait for ever."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        if status.st_size == 0:
            raise BadImage("empty file")
        if status.st_size > MAX_FILE:
            raise BadImage(f"file of more than {MAX_FILE // 1024**2} MiB")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from error


def decode_bytes(data: bytes, name: str) -> Decoded:
    """Decode the bytes of the file ``name``: content decides the format, the ending is only compared."""
    try:
        with _open(data) as image:
            _refuse_threads(image)
            notes = _format_notes(image, name)
            # verify() passes truncated files: only decoding every pixel of them finds out
            image.load()
            upright, turned = _upright(image)
            rgb, converted = _to_rgb(upright)
    except (BadImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image in a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's plugins raise whatever the bytes provoke
        raise BadImage(f"cannot be decoded: {error or type(error).__name__}") from error
    return Decoded(image=rgb, notes=(*notes, *turned, *converted))


def _open(data: bytes) -> Image.Image:
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(BytesIO(data), formats=[name for name in FORMATS if name != "MPO"])


def _refuse_threads(image: Image.Image) -> None:
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise BadImage(f"{image.width} x {image.height} pixels: one side is over {MAX_ASPECT} times the other")


def _format_notes(image: Image.Image, name: str) -> tuple[str, ...]:
    notes = []
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in FORMATS[image.format or "PNG"]:
        notes.append(f"named {suffix or 'without an ending'} but holds {image.format}")
    if image.format != "MPO" and _animated(image):
        notes.append("animation or several pages: the first is taken")
    return tuple(notes)


def _animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except (
        OSError,
        EOFError,
        SyntaxError,
        ValueError,
    ):  # a damaged later frame; the first is judged by load()
        return False


def _upright(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Turned as EXIF orientation says."""
    try:
        turn = image.getexif().get(0x0112, 1)
        if turn in range(2, 9):
            return ImageOps.exif_transpose(image), ("turned upright as its EXIF says",)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        return image, ("EXIF cannot be read and is ignored",)
    return image, ()


def _to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """RGB of any mode. convert("RGB") alone would saturate 16-bit grey and show what transparency hides."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (*_WHITE, 255))
        return Image.alpha_composite(white, layer).convert("RGB"), ("transparency put on white",)
    if image.mode == "RGB":
        return image.copy(), ()
    notes = (f"converted from {image.mode}",) if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") else ()
    return image.convert("RGB"), notes


def _deep_grey(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """16-bit grey g -> g / 257; floating point in [0, 1] -> 255 g. Any other range has no agreed white."""
    levels = np.asarray(image, dtype=np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    if not np.all(np.isfinite(levels)) or levels.min() < 0 or levels.max() > white:
        raise BadImage(f"grey levels outside [0, {white:g}] in mode {image.mode}: black and white are not known")
    grey = np.rint(levels * (255.0 / white)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB"), (f"rescaled from {image.mode} grey",)


def to_array(
    image: Image.Image, *, resolution: int, resize: Resize = "crop", flip: bool = False, multiple: int = 8
) -> NDArray[np.float32]:
    """X = v / 127.5 - 1: RGB picture -> (3, R, R) float32 in [-1, 1].

    "crop": shorter side to R by LANCZOS, then the centre (as diffusers' scripts do); "pad": longer side to R,
    white borders; "stretch": both sides to R; "bucket": (3, H, W) of about R^2 pixels, the size of the nearest
    aspect, covered and then cropped; its sides are multiples of ``multiple``.
    """
    fitted = _fitted(image.convert("RGB"), resolution, resize, multiple)
    if flip:
        fitted = ImageOps.mirror(fitted)
    values = np.asarray(fitted, dtype=np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(values / np.float32(127.5) - np.float32(1.0))


def _fitted(image: Image.Image, resolution: int, resize: Resize, multiple: int) -> Image.Image:
    lanczos = Image.Resampling.LANCZOS
    width, height = image.size
    if resize == "bucket":
        return ImageOps.fit(image, bucket_of((width, height), resolution, multiple), lanczos)
    if resize == "stretch":
        return image.resize((resolution, resolution), lanczos)
    if resize == "pad":
        return ImageOps.pad(image, (resolution, resolution), lanczos, color=_WHITE)
    short = min(width, height)
    scaled = (resolution * width // short, resolution * height // short)
    left, top = (round((side - resolution) / 2) for side in scaled)
    return image.resize(scaled, lanczos).crop((left, top, left + resolution, top + resolution))


@dataclass(frozen=True, kw_only=True)
class Placements:
    """What ``to_array`` makes of n images: ``corner`` of the kept part in the scaled picture, and its ``size``."""

    corner: NDArray[np.int64]  # (n, 2) left, top
    size: NDArray[np.int64]  # (n, 2) width, height


def placements(sizes: NDArray[np.int64], *, resolution: int, resize: Resize, multiple: int = 8) -> Placements:
    """Widths and heights (n, 2) -> where each image's kept part lies. "pad" and "stretch" keep all of it."""
    square = np.full_like(sizes, resolution)
    if resize in ("pad", "stretch"):
        return Placements(corner=np.zeros_like(sizes), size=square)
    if resize == "bucket":
        known = np.array(bucket_sizes(resolution, multiple), dtype=np.int64)
        square = known[nearest_buckets(sizes, resolution, multiple)]
        scaled = sizes * (square / sizes).max(axis=1, keepdims=True)
    else:
        scaled = resolution * sizes // sizes.min(axis=1, keepdims=True)
    return Placements(corner=np.rint((scaled - square) / 2).astype(np.int64), size=square)


def from_array(values: NDArray[np.floating]) -> Image.Image:
    """V = 127.5 (x + 1), clipped: (3, h, w) in [-1, 1] -> RGB picture."""
    levels = np.rint((np.clip(values, -1.0, 1.0).astype(np.float64) + 1.0) * 127.5)
    return Image.fromarray(np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0)))
