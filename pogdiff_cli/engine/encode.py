"""Encode once: latents and text embeddings go to content-addressed caches before training starts.

Several processes share the work: what is missing falls to one of them by its key. When all are done, which takes a
barrier, ``cache.refresh()`` shows each what the others made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pogdiff_cli.data.buckets import nearest_buckets
from pogdiff_cli.data.images import Resize, decode_known, to_array
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.digests import digest_value

_SCHEMA = 2  # raised whenever the meaning of a cached tensor changes
_SHARD = 256  # entries of one file: what an interruption can cost
CONDITION = "condition."
Form = Literal["embeddings", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images to encode, in columns; n of them."""

    folder: Path
    file_names: Sequence[str]
    sha256: Sequence[str]
    sizes: NDArray[np.int64]  # (n, 2) width, height: images of one shape are encoded together

    def keys(self, *, flipped: bool) -> Iterator[str]:
        """Content addresses within the space of a cache, row by row."""
        return (latent_key(digest, flipped=flipped) for digest in self.sha256)


def latent_key(image_sha256: str, *, flipped: bool) -> str:
    """Content address of one image's latents within its space."""
    return f"{image_sha256}-flip" if flipped else image_sha256


def text_key(text: str) -> str:
    """Content address of one text within its space."""
    return hashlib.sha256(text.encode()).hexdigest()


def latent_space(*, vae_digest: str, resolution: int, resize: str) -> str:
    """The folder's name, below that of all caches, for one VAE and one image transform."""
    return "latents/" + digest_value([_SCHEMA, vae_digest, resolution, resize]).removeprefix("sha256:")[:16]


def text_space(*, encoder_digest: str, form: Form = "embeddings") -> str:
    """The folder's name for one text encoder and tokenizer, and for what of them is kept."""
    parts = [_SCHEMA, encoder_digest] if form == "embeddings" else [_SCHEMA, encoder_digest, form]
    return "text/" + digest_value(parts).removeprefix("sha256:")[:16]


def latent_cache(folder: Path, *, vae_digest: str, resolution: int, resize: str) -> TensorCache:
    """The cache of one VAE and one image transform."""
    return TensorCache(folder / latent_space(vae_digest=vae_digest, resolution=resolution, resize=resize))


def text_cache(folder: Path, *, encoder_digest: str, form: Form = "embeddings") -> TensorCache:
    """The cache of one text encoder and tokenizer; or of texts before an encoder that is trained reads them."""
    return TensorCache(folder / text_space(encoder_digest=encoder_digest, form=form))


def encode_latents(
    cache: TensorCache,
    adapter: Adapter,
    images: Images,
    *,
    resolution: int,
    resize: Resize,
    flips: Sequence[bool] = (False,),
    rank: int = 0,
    world: int = 1,
    batch_size: int = 16,
    track: Track = untracked,
) -> None:
    """Fill the cache with this rank's share of ``images``, as they are and mirrored as ``flips`` says."""
    wanted = [cache.missing_places(images.keys(flipped=flip), rank=rank, world=world) for flip in flips]
    rows = np.concatenate(wanted)
    mirrored = np.repeat(np.asarray(flips, dtype=np.bool_), [len(places) for places in wanted])
    if resize == "bucket":
        order = np.argsort(nearest_buckets(images.sizes[rows], resolution, adapter.side_multiple), kind="stable")
        rows, mirrored = rows[order], mirrored[order]
    pending = _Pending(cache)
    for start in track(range(0, len(rows), batch_size), "Encoding images", -(-len(rows) // batch_size)):
        here = slice(start, start + batch_size)
        batch = _Pixels(images, resolution, resize, adapter.side_multiple)
        for row, flip in zip(rows[here].tolist(), mirrored[here].tolist(), strict=True):
            batch.add(row, flip)
        for keys, pixels in batch.stacked():
            moments = adapter.encode_images(_full(pixels, batch_size))
            pending.add(keys, {"mean": moments.mean, "std": moments.std})
    pending.flush()


def encode_texts(
    cache: TensorCache,
    adapter: Adapter,
    texts: Sequence[str],
    *,
    form: Form = "embeddings",
    rank: int = 0,
    world: int = 1,
    batch_size: int = 32,
    track: Track = untracked,
) -> None:
    """Fill the cache with this rank's share of the distinct texts: the condition's tensors and ``pooled``.

    With ``tokens``, what there is of them before CLIP encoders that are trained read them in each step.
    """
    rows = cache.missing_places((text_key(text) for text in texts), rank=rank, world=world)
    pending = _Pending(cache)
    for start in track(range(0, len(rows), batch_size), "Encoding captions", -(-len(rows) // batch_size)):
        batch = [texts[row] for row in rows[start : start + batch_size]]
        full = batch + batch[-1:] * (batch_size - len(batch))  # as in _full
        if form == "tokens":
            columns, pooled = adapter.tokens(full), {}
        else:
            encoding = adapter.encode_text(full)
            columns, pooled = encoding.condition, {"pooled": encoding.pooled}
        named = {CONDITION + name: tensor for name, tensor in columns.items()}
        pending.add([text_key(text) for text in batch], {**named, **pooled})
    pending.flush()


def conditions(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """The condition's tensors among a text cache's columns."""
    return {name.removeprefix(CONDITION): t for name, t in entries.items() if name.startswith(CONDITION)}


def _full(pixels: Tensor, batch_size: int) -> Tensor:
    """The batch filled up with its last row: in a smaller one sums round otherwise.

    So an entry has the same bits whatever else was missing when it was made, and a project that grew has those of one
    made today.
    """
    return torch.cat([pixels, pixels[-1:].expand(batch_size - len(pixels), *pixels.shape[1:])])


class _Pixels:
    """The decoded images of one batch, by shape: at the border between two buckets there are two."""

    def __init__(self, images: Images, resolution: int, resize: Resize, multiple: int) -> None:
        self._images, self._resolution, self._resize, self._multiple = images, resolution, resize, multiple
        self._arrays: dict[tuple[int, ...], dict[str, NDArray[np.float32]]] = {}

    def add(self, row: int, flip: bool) -> None:
        image = decode_known(self._images.folder / self._images.file_names[row], self._images.sha256[row])
        array = to_array(image, resolution=self._resolution, resize=self._resize, flip=flip, multiple=self._multiple)
        key = latent_key(self._images.sha256[row], flipped=flip)
        self._arrays.setdefault(array.shape, {})[key] = array

    def stacked(self) -> Iterator[tuple[list[str], Tensor]]:
        for arrays in self._arrays.values():
            yield list(arrays), torch.from_numpy(np.stack(list(arrays.values())))


class _Pending:
    """Entries that wait until they fill a file."""

    def __init__(self, cache: TensorCache) -> None:
        self._cache = cache
        self._entries: dict[str, dict[str, Tensor]] = {}

    def add(self, keys: Sequence[str], columns: dict[str, Tensor]) -> None:
        host = {name: (t.float() if t.is_floating_point() else t).cpu() for name, t in columns.items()}
        self._entries |= {key: {name: t[i] for name, t in host.items()} for i, key in enumerate(keys)}
        if len(self._entries) >= _SHARD:
            self.flush()

    def flush(self) -> None:
        if self._entries:
            self._cache.add(self._entries)
            self._entries = {}
