"""Image encoders of timm: ``timm:NAME_OR_DIR[@revision]``, from ``config.json`` and ``model.safetensors`` alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.extractors.protocol import Embeddings, digest_of_files, embed_in_batches, refuse_unknown
from pogdiff_cli.models.foreign import read_from
from pogdiff_cli.models.snapshots import local_snapshot
from pogdiff_cli.progress import Track, untracked

HOW_TO_INSTALL = "Run: pip install timm torchvision   (with the --index-url that torch was installed from, if any)"
# arguments of timm.create_model itself: they lead to other files, pickled ones too, and to the hub
_OF_TIMM = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable"}
_INTERPOLATION = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class TimmEncoder:
    """A model without its classifier: its features are what the classifier would have read."""

    name: str
    digest: str
    dim: int
    preprocessing: dict[str, Any]
    model: Any
    device: str

    def embed(self, images: Iterable[Image.Image], *, batch_size: int = 32, track: Track = untracked) -> Embeddings:
        """Pooled features (n, dim), in float32."""
        return embed_in_batches(self._encode, images, self.dim, batch_size, track, last="filled up")

    def _encode(self, images: list[Image.Image]) -> NDArray[np.float32]:
        import torch

        pixels = torch.from_numpy(np.stack([prepared(image, self.preprocessing) for image in images]))
        with torch.inference_mode():
            features = self.model(pixels.to(self.device))  # (b, 3, s, s) -> (b, dim)
        return np.asarray(features.float().cpu().numpy(), dtype=np.float32)


def prepared(image: Image.Image, how: Mapping[str, Any]) -> NDArray[np.float32]:
    """Shorter side ("squash": both) to size / crop_pct, the centre square, (x / 255 - mean) / std: (3, size, size).

    Lengths and offsets are rounded as timm's own evaluation transform rounds them.
    """
    size = int(how["size"])
    short, shorter = int(size / float(how["crop_pct"])), min(image.size)
    width, height = (short if how["crop_mode"] == "squash" else short * side // shorter for side in image.size)
    picture = image.convert("RGB").resize((width, height), _INTERPOLATION[how["interpolation"]])
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    normal = (pixels - np.asarray(how["mean"], dtype=np.float32)) / np.asarray(how["std"], dtype=np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def weights_spec(spec: str) -> str:
    """``timm:vit_small_patch16_224.dino`` lies on the hub as ``timm/vit_small_patch16_224.dino``."""
    body = spec.partition(":")[2]
    return spec if "/" in body or Path(body).is_dir() else f"timm:timm/{body}"


def load_timm(spec: str, opts: Mapping[str, Any], device: str) -> TimmEncoder:
    """Build the architecture that ``config.json`` names and fill it from safetensors; nothing is downloaded."""
    refuse_unknown(spec, opts, ())
    folder = local_snapshot(weights_spec(spec), "extractor")
    timm = import_timm()
    config = _read(folder)
    with read_from(folder, "extractor"):
        model = timm.create_model(
            config["architecture"], pretrained=False, num_classes=0, **_model_args(folder, config)
        )
        _fill(model, folder, config["pretrained_cfg"])
        preprocessing = _preprocessing(config["pretrained_cfg"])
    encoder = TimmEncoder(
        name=spec,
        digest=digest_of_files([folder / "config.json", folder / "model.safetensors"], preprocessing),
        dim=0,
        preprocessing=preprocessing,
        model=model.to(device).eval(),
        device=device,
    )
    probe = encoder._encode([Image.new("RGB", (64, 64), (128, 128, 128))])
    return TimmEncoder(**{**encoder.__dict__, "dim": int(probe.shape[1])})


def import_timm() -> Any:
    """The package, or an error that says how to install it."""
    try:
        import timm
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision of another build says it in its own ways
        raise PogdiffError(
            f"timm: extractors need timm, and timm needs a torchvision built for this torch ({error}).",
            hint=HOW_TO_INSTALL,
            exit_code=Exit.MISSING,
        ) from error
    return timm


def _read(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = config["pretrained_cfg"]["input_size"]
        # a model that timm has saved names the classes of its classifier there, which is left out
        args = {key: value for key, value in (config.get("model_args") or {}).items() if key != "num_classes"}
        if isinstance(config["architecture"], str) and len(shape) == 3 and shape[1] == shape[2]:
            return {**config, "model_args": args}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    raise PogdiffError(
        f"{folder} holds no model of timm for square pictures.",
        hint="It must have config.json, as the hub's timm/... models have, and model.safetensors.",
        exit_code=Exit.MISSING,
    )


def _model_args(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the architecture, and of it alone."""
    found = config.get("model_args") or {}
    name = config["architecture"]
    if not isinstance(found, dict) or _OF_TIMM & set(found) or ":" in name or "/" in name:
        raise PogdiffError(
            f"{folder / 'config.json'} would have timm read something else than this folder; that is not done.",
            hint="architecture is to be a plain name, and model_args arguments of that architecture.",
            exit_code=Exit.MISSING,
        )
    return dict(found)


def _preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    interpolation = str(config.get("interpolation", "bicubic"))
    return {
        "size": int(config["input_size"][1]),
        "crop_pct": float(config.get("crop_pct") or 0.875),
        "crop_mode": _crop_mode(config),
        "interpolation": interpolation if interpolation in _INTERPOLATION else "bicubic",
        "mean": [float(value) for value in config.get("mean", (0.485, 0.456, 0.406))],
        "std": [float(value) for value in config.get("std", (0.229, 0.224, 0.225))],
    }


def _crop_mode(config: Mapping[str, Any]) -> str:
    mode = str(config.get("crop_mode") or "center")
    if mode not in ("center", "squash"):
        raise PogdiffError(
            f"Pictures are cropped in timm's way {mode!r}, which is not done here.",
            hint="Take a model whose crop_mode is center or squash.",
            exit_code=Exit.USAGE,
        )
    return mode


def _fill(model: Any, folder: Path, config: Mapping[str, Any]) -> None:
    """Every weight of the model comes from the file; of the file only the classifier stays out."""
    from safetensors.torch import load_file

    if not (folder / "model.safetensors").is_file():
        raise PogdiffError(
            f"{folder} has no model.safetensors (pickled weights are not loaded).", exit_code=Exit.MISSING
        )
    found = config.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([found] if isinstance(found, str) else found))
    state = {key: value for key, value in load_file(folder / "model.safetensors").items() if not key.startswith(heads)}
    try:
        missing, further = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        missing, further = [str(error).splitlines()[-1].strip()], []
    if missing or further:
        raise PogdiffError(
            f"The weights in {folder} do not fit their architecture: {', '.join([*missing, *further][:3])}.",
            hint="Download the model again.",
            exit_code=Exit.MISSING,
        )
