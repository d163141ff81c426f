"""Image features by a named extractor, computed once for each image's content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pogdiff_cli.data.images import decode
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.extractors import Extractor, load_extractor
from pogdiff_cli.project.digests import digest_value
from pogdiff_cli.stages.context import Context

_CHUNK = 256


def open_extractor(context: Context, spec: str) -> Extractor:
    """The extractor of a spec, with the options that ``extractors`` gives it (paths relative to the project)."""
    configured = context.project.config.extractors
    options: dict[str, Any] = dict(configured.get(spec, configured.get(spec.split(":", 1)[0], {})))
    for key in ("weights", "detector", "predictor"):
        if isinstance(options.get(key), str):
            options[key] = str((context.project.root / options[key]).expanduser())
    return load_extractor(spec, opts=options, device=str(context.devices.own))


def embed(
    context: Context, extractor: Extractor, paths: Sequence[Path], keys: Sequence[str], *, label: str, batch_size: int
) -> NDArray[np.float32]:
    """Features (n, d), raw; a row of NaN where no face was found. ``keys`` are the images' content digests."""
    space = digest_value([extractor.name, extractor.digest, extractor.preprocessing]).removeprefix("sha256:")[:16]
    cache = TensorCache(context.project.cache / "embeddings" / space)
    where = dict(zip(keys, paths, strict=True))
    wanted = cache.missing(keys)
    chunks = [wanted[i : i + _CHUNK] for i in range(0, len(wanted), _CHUNK)]
    done = _Steps(context, label, len(wanted))
    for chunk in chunks:
        images = (done(decode(_present(where[key])).image) for key in chunk)
        found = extractor.embed(images, batch_size=batch_size)
        vectors = np.where(found.missing[:, None], np.nan, found.vectors).astype(np.float32)
        cache.add({key: {"vector": torch.from_numpy(vector)} for key, vector in zip(chunk, vectors, strict=True)})
    done.close()
    if not keys:
        return np.zeros((0, extractor.dim), dtype=np.float32)
    return np.asarray(cache.get(keys)["vector"].numpy())


def _present(path: Path) -> Path:
    if not path.is_file():
        raise PogdiffError(f"{path} has vanished.", hint="Type the command again.", exit_code=Exit.DATA)
    return path


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
