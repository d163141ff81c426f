"""Image features by a named extractor, computed once for each image's content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pogdiff_cli.data.images import decode_known
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.models.extractors import Extractor, load_extractor
from pogdiff_cli.project.digests import digest_value
from pogdiff_cli.project.disk import reserve
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.requirements import extractor_options

_CHUNK = 256  # images a shard of the cache
_READ = 16_384  # vectors copied at once


def open_extractor(context: Context, spec: str) -> Extractor:
    """The extractor of a spec, with the options that ``extractors`` gives it (paths relative to the project)."""
    options = extractor_options(context.project, spec)
    return load_extractor(spec, opts=options, device=str(context.devices.own))


def embed(
    context: Context, extractor: Extractor, paths: Sequence[Path], keys: Sequence[str], *, label: str, batch_size: int
) -> NDArray[np.float32]:
    """Features (n, d), raw; a row of NaN where no face was found. ``keys`` are the images' content digests."""
    cache = fill_cache(context, extractor, paths, keys, label=label, batch_size=batch_size)
    vectors = np.empty((len(keys), extractor.dim), dtype=np.float32)
    _copy(cache, keys, vectors)
    return vectors


def copied_to(file: Path, cache: TensorCache, keys: Sequence[str], dim: int) -> NDArray[np.float32]:
    """Features (n, dim) in a new ``.npy`` file, memory-mapped: of any number of images."""
    vectors = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(len(keys), dim))
    reserve(file)
    _copy(cache, keys, vectors)
    vectors.flush()
    return vectors


def embedding_space(name: str, digest: str, preprocessing: Mapping[str, Any]) -> str:
    """The folder's name, below that of all caches, for one extractor."""
    return "embeddings/" + digest_value([name, digest, dict(preprocessing)]).removeprefix("sha256:")[:16]


def fill_cache(
    context: Context, extractor: Extractor, paths: Sequence[Path], keys: Sequence[str], *, label: str, batch_size: int
) -> TensorCache:
    """The cache of this extractor, with an entry for every key. Each process embeds its share."""
    space = embedding_space(extractor.name, extractor.digest, extractor.preprocessing)
    cache = TensorCache(context.project.cache / space)
    missing = cache.missing(keys)
    context.world.together()  # all have looked before anyone writes
    wanted = context.world.share(missing)
    where = dict(zip(keys, paths, strict=True)) if wanted else {}
    chunks = [wanted[i : i + _CHUNK] for i in range(0, len(wanted), _CHUNK)]
    done = _Steps(context, label, len(wanted))
    for chunk in chunks:
        images = (done(decode_known(where[key], key)) for key in chunk)
        found = extractor.embed(images, batch_size=batch_size)
        vectors = np.where(found.missing[:, None], np.nan, found.vectors).astype(np.float32)
        cache.add({key: {"vector": torch.from_numpy(vector)} for key, vector in zip(chunk, vectors, strict=True)})
    done.close()
    context.world.together()
    cache.refresh()
    return cache


def _copy(cache: TensorCache, keys: Sequence[str], vectors: NDArray[np.float32]) -> None:
    for start in range(0, len(keys), _READ):
        part = keys[start : start + _READ]
        vectors[start : start + len(part)] = cache.get(part)["vector"].numpy()


class _Steps:
    """Advances the progress display by one image at a time, from inside a generator."""

    def __init__(self, context: Context, label: str, total: int) -> None:
        self._ticks = iter(context.track(range(total), label, total)) if total else iter(())

    def __call__(self, image: Any) -> Any:
        next(self._ticks, None)
        return image

    def close(self) -> None:
        """Let the display finish."""
        for _ in self._ticks:
            pass
