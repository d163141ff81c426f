"""ONNX graphs: ``onnx:PATH[#output]``, where the output may be any tensor inside the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from pogdiff_cli.progress import Track, untracked

_OPTIONS = ("size", "mean", "std", "scale", "channels")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """x = (scale * v - mean) / std, v in 0..255, channel by channel in the order of ``channels``."""

    size: tuple[int, int]  # width, height
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1.0 / 255.0
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"

    def __call__(self, images: list[Image.Image]) -> NDArray[np.float32]:
        """Pictures -> (b, 3, h, w) or (b, h, w, 3)."""
        bilinear = Image.Resampling.BILINEAR
        pixels = np.stack([np.asarray(i.convert("RGB").resize(self.size, bilinear), dtype=np.float32) for i in images])
        if self.channels == "bgr":
            pixels = pixels[..., ::-1]
        mean, std = np.asarray(self.mean, dtype=np.float32), np.asarray(self.std, dtype=np.float32)
        scaled = (pixels * np.float32(self.scale) - mean) / std
        scaled = scaled.transpose(0, 3, 1, 2) if self.layout == "nchw" else scaled
        return np.ascontiguousarray(scaled, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class OnnxGraph:
    """A session, its input and the output that is the feature."""

    name: str
    digest: str
    dim: int
    preprocessing: dict[str, Any]
    session: Any
    prepare: Preprocessing
    output: str
    fixed_batch: int | None  # where the graph's batch size is written into it

    def embed(self, images: Iterable[Image.Image], *, batch_size: int = 32, track: Track = untracked) -> Embeddings:
        """Features (n, dim): the output, flattened."""
        size = self.fixed_batch or batch_size
        return embed_in_batches(self._encode, images, self.dim, size, track, last="filled up")

    def _encode(self, images: list[Image.Image]) -> NDArray[np.float32]:
        wanted = self.fixed_batch or len(images)
        padded = images + [images[-1]] * (wanted - len(images))
        feed = {self.session.get_inputs()[0].name: self.prepare(padded)}
        (values,) = self.session.run([self.output], feed)
        return np.asarray(values, dtype=np.float32).reshape(wanted, -1)[: len(images)]


def load_onnx(spec: str, opts: Mapping[str, Any], device: str) -> OnnxGraph:
    """Open the graph; options ``size``, ``mean``, ``std``, ``scale`` (1/255), ``channels`` (rgb, bgr)."""
    refuse_unknown(spec, opts, _OPTIONS)
    location, _, output = spec.removeprefix("onnx:").partition("#")
    path = existing_file(spec, location, "the ONNX file", "Check the path after 'onnx:'.")
    session = _session(path, output, device)
    output = output or session.get_outputs()[0].name
    prepare, batch = _preprocessing(spec, session.get_inputs()[0].shape, opts)
    described = {
        "size": list(prepare.size),
        "mean": list(prepare.mean),
        "std": list(prepare.std),
        "scale": prepare.scale,
        "channels": prepare.channels,
        "layout": prepare.layout,
        "interpolation": "bilinear",
        "output": output,
    }
    graph = OnnxGraph(
        name=spec,
        digest=digest_of_files([path], described),
        dim=0,
        preprocessing=described,
        session=session,
        prepare=prepare,
        output=output,
        fixed_batch=batch,
    )
    probe = graph._encode([Image.new("RGB", prepare.size, (128, 128, 128))])
    return OnnxGraph(**{**graph.__dict__, "dim": int(probe.shape[1])})


def _session(path: Path, output: str, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise PogdiffError(
            "The extractor onnx: needs onnxruntime.",
            hint="Run: pip install 'pogdiff[onnx]'",
            exit_code=Exit.MISSING,
        ) from error
    wanted = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
    providers = [p for p in [*wanted, "CPUExecutionProvider"] if p in onnxruntime.get_available_providers()]
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=providers)
        if output and output not in [found.name for found in session.get_outputs()]:
            exposed = path.read_bytes() + _output_message(output)
            session = onnxruntime.InferenceSession(exposed, settings, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions share no public base
        wanted_output = f" with the output {output!r}" if output else ""
        reason = str(error).splitlines()[0]
        raise PogdiffError(
            f"{path} cannot be opened{wanted_output}: {reason}",
            hint="Is it an ONNX file, and is the output the name of a tensor in its graph?",
            exit_code=Exit.MISSING,
        ) from error
    return session


def _output_message(name: str) -> bytes:
    """ModelProto{graph{output{name}}} as bytes.

    Serialised messages merge when joined: appended to a model, this makes an inner tensor one of its outputs.
    """
    value_info = _field(1, name.encode("utf-8"))
    return _field(7, _field(12, value_info))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def _preprocessing(
    spec: str, shape: list[int | str | None], opts: Mapping[str, Any]
) -> tuple[Preprocessing, int | None]:
    """What the options say, and what the graph's own input shape (b, 3, h, w) or (b, h, w, 3) says."""
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise PogdiffError(f"The input of {spec} is {shape}, not a batch of RGB pictures.", exit_code=Exit.USAGE)
    layout: Literal["nchw", "nhwc"] = "nchw" if shape[1] == 3 else "nhwc"
    height, width = (shape[2], shape[3]) if layout == "nchw" else (shape[1], shape[2])
    size = int(opts.get("size", 0))
    if not size and not (isinstance(height, int) and isinstance(width, int)):
        raise PogdiffError(f"{spec} takes pictures of any size.", hint="Set its option 'size'.", exit_code=Exit.USAGE)
    channels = opts.get("channels", "rgb")
    if channels not in ("rgb", "bgr"):
        raise PogdiffError(f"channels: {channels!r} is unknown.", hint="Name rgb or bgr.", exit_code=Exit.USAGE)
    prepare = Preprocessing(
        size=(size, size) if size else (int(width or 0), int(height or 0)),
        mean=_triple("mean", opts.get("mean", (0.0, 0.0, 0.0))),
        std=_triple("std", opts.get("std", (1.0, 1.0, 1.0))),
        scale=float(opts.get("scale", 1.0 / 255.0)),
        channels=channels,
        layout=layout,
    )
    return prepare, shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None


def _triple(key: str, values: Any) -> tuple[float, float, float]:
    try:
        first, second, third = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise PogdiffError(f"{key}: {values!r} is no list of three numbers.", exit_code=Exit.USAGE) from error
    return first, second, third
