"""Image encoders of transformers: ``hf:ID_OR_DIR[@revision]#cls|pooler|mean``, from safetensors alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.extractors.protocol import Embeddings, embed_in_batches, refuse_unknown
from pogdiff_cli.models.foreign import read_from, refuse_adapter
from pogdiff_cli.models.snapshots import local_snapshot
from pogdiff_cli.progress import Track, untracked

_LARGEST = 4096  # pixels a side that a processor may ask for
_POOLINGS = ("cls", "pooler", "mean")


@dataclass(frozen=True, kw_only=True)
class _Source:
    model: str
    revision: str | None
    pooling: str

    @property
    def local(self) -> bool:
        return Path(self.model).is_dir()


def parse(spec: str) -> _Source:
    """``hf:ID_OR_DIR[@revision]#pooling`` in parts; the pooling is cls where none is named."""
    body, _, pooling = spec.removeprefix("hf:").partition("#")
    pooling = pooling or "cls"
    if pooling not in _POOLINGS:
        raise PogdiffError(
            f"The pooling {pooling!r} of {spec} is unknown.",
            hint="Name cls, pooler or mean.",
            exit_code=Exit.USAGE,
        )
    model, revision = (body, "") if Path(body).is_dir() else body.partition("@")[::2]
    return _Source(model=model, revision=revision or None, pooling=pooling)


@dataclass(frozen=True, kw_only=True)
class HubEncoder:
    """A vision model, its image processor, and which of its outputs is the feature."""

    name: str
    digest: str
    dim: int
    preprocessing: dict[str, Any]
    model: Any
    processor: Any
    pooling: str
    device: str

    def embed(self, images: Iterable[Image.Image], *, batch_size: int = 32, track: Track = untracked) -> Embeddings:
        """Features (n, dim) of the chosen output, in float32."""
        return embed_in_batches(self._encode, images, self.dim, batch_size, track, last="filled up")

    def _encode(self, images: list[Image.Image]) -> NDArray[np.float32]:
        import torch

        pixels = self.processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            output = self.model(pixel_values=pixels.to(self.device))
            features = _pooled(output, pixels.shape, self.model.config, self.pooling)  # (b, dim)
        return np.asarray(features.float().cpu().numpy(), dtype=np.float32)


def _pooled(output: Any, shape: tuple[int, ...], config: Any, pooling: str) -> Any:
    """cls: h[:, 0]; pooler: the model's own; mean: over patches, or the grid (b, c, h, w) of a CNN."""
    if pooling == "pooler":
        if getattr(output, "pooler_output", None) is None:
            raise PogdiffError("This model has no pooler.", hint="Use #cls or #mean.", exit_code=Exit.USAGE)
        return output.pooler_output.flatten(1)
    hidden = output.last_hidden_state
    if hidden.ndim == 4:
        if pooling == "mean":
            return hidden.mean(dim=(2, 3))
        raise PogdiffError("This model has no class token.", hint="Use #mean or #pooler.", exit_code=Exit.USAGE)
    patch = getattr(config, "patch_size", None)
    side = patch if isinstance(patch, int) else (patch or [1])[0]
    patches = (shape[2] // side) * (shape[3] // side) if patch else hidden.shape[1] - 1
    before = hidden.shape[1] - patches  # the class token, and registers where there are any
    if pooling == "mean":
        return hidden[:, max(0, before) :].mean(dim=1)
    if before < 1:
        raise PogdiffError("This model has no class token.", hint="Use #mean or #pooler.", exit_code=Exit.USAGE)
    return hidden[:, 0]


def load_hub(spec: str, opts: Mapping[str, Any], device: str) -> HubEncoder:
    """Load the model and its image processor; neither custom code nor a pickle is ever read."""
    refuse_unknown(spec, opts, ())
    source = parse(spec)
    folder = local_snapshot(spec, "extractor")
    refuse_adapter(folder, "extractor")
    with read_from(folder, "extractor"):
        return _encoder(spec, source, device)


def _encoder(spec: str, source: _Source, device: str) -> HubEncoder:
    model, processor = _load(source)
    model = model.to(device).eval()
    preprocessing = json.loads(processor.to_json_string())
    _refuse_huge(source, preprocessing)
    digest = hashlib.sha256(json.dumps([source.pooling, preprocessing], sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(_bytes()).numpy().tobytes())
    encoder = HubEncoder(
        name=spec,
        digest=digest.hexdigest(),
        dim=0,
        preprocessing=preprocessing,
        model=model,
        processor=processor,
        pooling=source.pooling,
        device=device,
    )
    # one grey picture tells the dimension whatever the architecture calls it, and that the pooling exists
    probe = encoder._encode([Image.new("RGB", (64, 64), (128, 128, 128))])
    return HubEncoder(**{**encoder.__dict__, "dim": int(probe.shape[1])})


def _refuse_huge(source: _Source, preprocessing: Mapping[str, Any]) -> None:
    """A processor that scales each picture to a million pixels a side would fill the memory."""
    sizes = [preprocessing.get(key) for key in ("size", "crop_size")]
    sides = [side for size in sizes for side in (size.values() if isinstance(size, dict) else [size])]
    if any(isinstance(side, int | float) and side > _LARGEST for side in sides):
        raise PogdiffError(
            f"{source.model} wants pictures of more than {_LARGEST} pixels a side.",
            hint="Is its preprocessor_config.json the one that it was published with?",
            exit_code=Exit.MISSING,
        )


def _bytes() -> Any:
    import torch

    return torch.uint8


def _load(source: _Source) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModel

    common: dict[str, Any] = {
        "revision": source.revision,
        "trust_remote_code": False,
        "local_files_only": True,  # nothing is fetched without being asked for
    }
    try:
        image_processors: Any = AutoImageProcessor
        processor = image_processors.from_pretrained(source.model, backend="pil", **common)
        model, loading = AutoModel.from_pretrained(
            source.model, use_safetensors=True, output_loading_info=True, **common
        )
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        revision = f" --revision {source.revision}" if source.revision else ""
        hint = (
            "The folder must hold config.json, preprocessor_config.json and model.safetensors."
            if source.local
            else f"Run: hf download {source.model}{revision}"
        )
        raise PogdiffError(
            f"The model {source.model} cannot be loaded: {first}", hint=hint, exit_code=Exit.MISSING
        ) from error
    # a model of pictures and texts: its vision tower alone
    tower = getattr(model, "vision_model", None)
    missing = [key for key in loading["missing_keys"] if tower is None or key.startswith("vision_model")]
    _refuse_random(source, missing)
    return (model if tower is None else tower), processor


def _refuse_random(source: _Source, missing: list[str]) -> None:
    """Weights that the files lack are drawn at random: the pooler of the first DINO is such a one."""
    used = [key for key in missing if source.pooling == "pooler" or "pooler" not in key]
    if used:
        raise PogdiffError(
            f"{source.model} has no trained weights for {', '.join(sorted(used)[:3])}.",
            hint="Use #cls or #mean." if source.pooling == "pooler" else "Download the model again.",
            exit_code=Exit.MISSING,
        )
