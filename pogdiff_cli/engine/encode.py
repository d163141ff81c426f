"""Encode once: latents and text embeddings go to content-addressed caches before training starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pogdiff_cli.data.images import decode, to_array
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.digests import digest_value

Resize = Literal["crop", "pad", "stretch"]
_SCHEMA = 1  # raised whenever the meaning of a cached tensor changes
_SHARD = 256


def latent_key(image_sha256: str, *, flipped: bool) -> str:
    """Content address of one image's latents within its space."""
    return f"{image_sha256}-flip" if flipped else image_sha256


def text_key(text: str) -> str:
    """Content address of one text within its space."""
    return hashlib.sha256(text.encode()).hexdigest()


def latent_cache(folder: Path, *, vae_digest: str, resolution: int, resize: str) -> TensorCache:
    """The cache of one VAE and one image transform."""
    space = digest_value([_SCHEMA, vae_digest, resolution, resize]).removeprefix("sha256:")[:16]
    return TensorCache(folder / "latents" / space)


def text_cache(folder: Path, *, encoder_digest: str) -> TensorCache:
    """The cache of one text encoder and tokenizer."""
    space = digest_value([_SCHEMA, encoder_digest]).removeprefix("sha256:")[:16]
    return TensorCache(folder / "text" / space)


def encode_latents(
    cache: TensorCache,
    adapter: Adapter,
    images: dict[str, Path],
    *,
    resolution: int,
    resize: Resize,
    batch_size: int = 16,
    track: Track = untracked,
) -> None:
    """Fill the cache for ``images``: key (with its flip mark) to file."""
    wanted = cache.missing(list(images))
    pending: dict[str, dict[str, Tensor]] = {}
    for keys in track(_batches(wanted, batch_size), "Encoding images", -(-len(wanted) // batch_size)):
        pixels = np.stack([_pixels(images[key], key, resolution, resize) for key in keys])
        moments = adapter.encode_images(torch.from_numpy(pixels))
        for i, key in enumerate(keys):
            pending[key] = {"mean": moments.mean[i].float().cpu(), "std": moments.std[i].float().cpu()}
        pending = _flush(cache, pending, _SHARD)
    _flush(cache, pending, 1)


def encode_texts(
    cache: TensorCache, adapter: Adapter, texts: Sequence[str], *, batch_size: int = 32, track: Track = untracked
) -> None:
    """Fill the cache for every distinct text: the condition's tensors and ``pooled``."""
    by_key = {text_key(text): text for text in texts}
    wanted = cache.missing(list(by_key))
    pending: dict[str, dict[str, Tensor]] = {}
    for keys in track(_batches(wanted, batch_size), "Encoding captions", -(-len(wanted) // batch_size)):
        encoding = adapter.encode_text([by_key[key] for key in keys])
        for i, key in enumerate(keys):
            entry = {f"condition.{name}": tensor[i].float().cpu() for name, tensor in encoding.condition.items()}
            pending[key] = {**entry, "pooled": encoding.pooled[i].float().cpu()}
        pending = _flush(cache, pending, _SHARD)
    _flush(cache, pending, 1)


def conditions(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """The condition's tensors among a text cache's columns."""
    return {name.removeprefix("condition."): t for name, t in entries.items() if name.startswith("condition.")}


def _pixels(path: Path, key: str, resolution: int, resize: Resize) -> np.ndarray:
    return to_array(decode(path).image, resolution=resolution, resize=resize, flip=key.endswith("-flip"))


def _batches(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[i : i + size] for i in range(0, len(keys), size))


def _flush(cache: TensorCache, pending: dict[str, dict[str, Tensor]], at_least: int) -> dict[str, dict[str, Tensor]]:
    if len(pending) < at_least:
        return pending
    cache.add(pending)
    return {}
