"""The user's own function as an extractor: ``py:module:function``, with ``allow_python: true`` alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
    refuse_unknown,
)
from pogdiff_cli.models.python_hook import import_function
from pogdiff_cli.progress import Track, untracked


@dataclass(frozen=True, kw_only=True)
class PythonFunction:
    """function(pictures) -> (b, dim); a row of NaN says that the picture has no face."""

    name: str
    digest: str
    dim: int
    preprocessing: dict[str, Any]
    function: Callable[[list[Image.Image]], Any]

    def embed(self, images: Iterable[Image.Image], *, batch_size: int = 32, track: Track = untracked) -> Embeddings:
        """Features (n, dim)."""
        return embed_in_batches(self._encode, images, self.dim, batch_size, track)

    def _encode(self, images: list[Image.Image]) -> NDArray[np.float32]:
        vectors = np.asarray(self.function(images), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(images):
            raise PogdiffError(
                f"{self.name} gave an array of shape {vectors.shape} for {len(images)} pictures.",
                hint="It must return one row a picture.",
                exit_code=Exit.USAGE,
            )
        return vectors


def load_python(spec: str, opts: Mapping[str, Any]) -> PythonFunction:
    """Import the function. The digest is that of its source file: weights it loads itself are not seen."""
    refuse_unknown(spec, opts, ("allow_python",))
    function = import_function(spec, allowed="yes" if opts.get("allow_python") is True else "no")
    source = inspect.getsourcefile(function)
    preprocessing = {"function": spec}
    extractor = PythonFunction(
        name=spec,
        digest=digest_of_files([Path(source)] if source else [], preprocessing),
        dim=0,
        preprocessing=preprocessing,
        function=function,
    )
    probe = extractor._encode([Image.new("RGB", (64, 64), (128, 128, 128))])
    return PythonFunction(**{**extractor.__dict__, "dim": int(probe.shape[1])})
