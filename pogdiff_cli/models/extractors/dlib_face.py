"""dlib's face recognition network: 128-d descriptors of a chip, from a fixed box or by landmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.extractors.protocol import (
    Embeddings,
    digest_of_files,
    embed_in_batches,
    existing_file,
    refuse_unknown,
)
from pogdiff_cli.models.foreign import read_from
from pogdiff_cli.progress import Track, untracked

CHIP = 150  # side of the picture that the network takes
DIM = 128
_FETCH = (
    "Run: pip download --no-deps face-recognition-models==0.3.0, unpack it, and set the option "
    "'{option}' to its {file}."
)
Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the centre square
ToChip = Callable[[Image.Image], "NDArray[np.uint8] | None"]  # None: no face


def fixed_chip(image: Image.Image, box: Box) -> NDArray[np.uint8]:
    """Picture -> (150, 150, 3): the box in the centre square, edge pixels repeated beyond it."""
    picture = _centre_square(image)
    side = picture.shape[0]
    left, top, right, bottom = (fraction * side for fraction in box)
    pad = ceil(max(0.0, -left, -top, right - side, bottom - side))
    padded = Image.fromarray(np.pad(picture, ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
    window = (left + pad, top + pad, right + pad, bottom + pad)
    return np.asarray(padded.resize((CHIP, CHIP), Image.Resampling.BICUBIC, box=window))


def _centre_square(image: Image.Image) -> NDArray[np.uint8]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.convert("RGB").crop((left, top, left + side, top + side)))


@dataclass(frozen=True, kw_only=True)
class DlibFace:
    """The network and how a picture becomes its chip."""

    name: str
    digest: str
    preprocessing: dict[str, Any]
    network: Any
    to_chip: ToChip
    dim: int = DIM

    def embed(self, images: Iterable[Image.Image], *, batch_size: int = 32, track: Track = untracked) -> Embeddings:
        """Descriptors (n, 128); an image in which no face is found is missing."""
        return embed_in_batches(self._encode, images, DIM, batch_size, track)

    def _encode(self, images: list[Image.Image]) -> NDArray[np.float32]:
        chips = [self.to_chip(image) for image in images]
        vectors = np.full((len(images), DIM), np.nan, dtype=np.float32)
        found = [row for row, chip in enumerate(chips) if chip is not None]
        for row in found:
            vectors[row] = np.asarray(self.network.compute_face_descriptor(np.ascontiguousarray(chips[row])))
        return vectors


def load(spec: str, opts: Mapping[str, Any]) -> DlibFace:
    """The extractor ``dlib``: options ``weights``, and ``chip`` or ``aligner: landmarks``."""
    refuse_unknown(spec, opts, ("weights", "chip", "aligner", "predictor", "detector"))
    weights = refuse_without_files(spec, opts)
    dlib = import_dlib()
    files = [weights]
    aligner = opts.get("aligner", "none")
    if aligner == "landmarks":
        to_chip, preprocessing = _landmark_chips(spec, opts, dlib)
        files += [existing_file(spec, opts[key], key, "") for key in ("predictor", "detector") if opts.get(key)]
    elif aligner == "none":
        box = _box(opts.get("chip", (0.0, 0.0, 1.0, 1.0)))
        preprocessing = {"chip": list(box), "size": CHIP, "interpolation": "bicubic"}

        def to_chip(image: Image.Image) -> NDArray[np.uint8] | None:
            return fixed_chip(image, box)
    else:
        raise PogdiffError(
            f"The aligner {aligner!r} is unknown.", hint="Name 'landmarks' or 'none'.", exit_code=Exit.USAGE
        )
    return DlibFace(
        name=spec,
        digest=digest_of_files(files, preprocessing),
        preprocessing=preprocessing,
        network=_opened(dlib.face_recognition_model_v1, weights),
        to_chip=to_chip,
    )


def refuse_without_files(spec: str, opts: Mapping[str, Any]) -> Path:
    """The network's file; exit 4 where it, or the predictor or detector that is named, is not there."""
    file = "dlib_face_recognition_resnet_model_v1.dat"
    fetch = _FETCH.format(option="weights", file=file)
    weights = existing_file(spec, opts.get("weights"), f"the file {file}", fetch)
    if opts.get("aligner") == "landmarks" and "chip" not in opts:
        fetch = _FETCH.format(option="predictor", file="shape_predictor_5_face_landmarks.dat")
        existing_file(spec, opts.get("predictor"), "a shape predictor", fetch)
    return weights


def import_dlib() -> Any:
    """The package, or an error that says how to install it."""
    try:
        import dlib
    except ImportError as error:
        raise PogdiffError(
            "The face extractor needs dlib.", hint="Run: pip install 'pogdiff[demo]'", exit_code=Exit.MISSING
        ) from error
    return dlib


def _opened(kind: Callable[[str], Any], file: Path) -> Any:
    with read_from(file, "network"):
        return kind(str(file))


def _box(values: Any) -> Box:
    try:
        left, top, right, bottom = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise _bad_box(values) from error
    if not (-1 <= left < right <= 2 and -1 <= top < bottom <= 2):
        raise _bad_box(values)
    return left, top, right, bottom


def _bad_box(values: Any) -> PogdiffError:
    return PogdiffError(
        f"chip: {values!r} is no box.",
        hint="Give left, top, right, bottom as fractions of the square picture, between -1 and 2.",
        exit_code=Exit.USAGE,
    )


def _landmark_chips(spec: str, opts: Mapping[str, Any], dlib: Any) -> tuple[ToChip, dict[str, Any]]:
    """The largest face, turned upright by its landmarks; dlib's HOG detector unless a CNN is named."""
    if "chip" in opts:
        raise PogdiffError("chip and aligner exclude each other.", exit_code=Exit.USAGE)
    fetch = _FETCH.format(option="predictor", file="shape_predictor_5_face_landmarks.dat")
    predictor = _opened(dlib.shape_predictor, existing_file(spec, opts.get("predictor"), "a shape predictor", fetch))
    detector_path = opts.get("detector")
    if detector_path:
        fetch = _FETCH.format(option="detector", file="mmod_human_face_detector.dat")
        cnn = _opened(dlib.cnn_face_detection_model_v1, existing_file(spec, detector_path, "the detector", fetch))

        def faces(pixels: NDArray[np.uint8]) -> list[Any]:
            return [found.rect for found in cnn(pixels, 1)]
    else:
        hog = dlib.get_frontal_face_detector()

        def faces(pixels: NDArray[np.uint8]) -> list[Any]:
            return list(hog(pixels, 1))

    def to_chip(image: Image.Image) -> NDArray[np.uint8] | None:
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB")))
        found = faces(pixels)
        if not found:
            return None
        largest = max(found, key=lambda face: face.area())
        return np.asarray(dlib.get_face_chip(pixels, predictor(pixels, largest), size=CHIP))

    kind = "cnn" if detector_path else "hog"
    return to_chip, {"aligner": "landmarks", "detector": kind, "size": CHIP, "padding": 0.25}
