"""What every extractor offers, and what the kinds of extractors share."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.progress import Track, untracked


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Raw features (not normalised) of n images; a row without a face is zero and marked as missing."""

    vectors: NDArray[np.float32]  # (n, dim)
    missing: NDArray[np.bool_]  # (n,)


class Extractor(Protocol):
    """Pictures -> features."""

    @property
    def name(self) -> str:
        """The specification, as the user wrote it."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of weights and preprocessing: equal digests mean comparable features."""
        ...

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        ...

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How a picture becomes the network's input, JSON-able."""
        ...

    def embed(self, images: Iterable[Image.Image], *, batch_size: int = 32, track: Track = untracked) -> Embeddings:
        """Features of the pictures, in their order; a batch at a time is taken from the iterable."""
        ...


Encode = Callable[[list[Image.Image]], NDArray[np.float32]]  # b pictures -> (b, dim), NaN rows where no face is


def embed_in_batches(
    encode: Encode,
    images: Iterable[Image.Image],
    dim: int,
    batch_size: int,
    track: Track,
    *,
    last: Literal["as it is", "filled up"] = "as it is",
) -> Embeddings:
    """Run ``encode`` over batches; a row of NaN stands for "no face" and becomes a missing row of zeros.

    ``filled up``: the last batch has as many pictures as the others, so that a picture's features have the same bits
    whatever was embedded with it.
    """
    blocks = [np.empty((0, dim), dtype=np.float32)]
    for batch in _batches(track(images, "Embedding images", _length(images)), batch_size):
        more = batch_size - len(batch) if last == "filled up" else 0
        blocks.append(encode(batch + batch[-1:] * more)[: len(batch)])
    vectors = np.concatenate(blocks).astype(np.float32, copy=False)
    missing = np.asarray(np.isnan(vectors).all(axis=1), dtype=np.bool_)
    vectors[missing] = 0.0
    if not np.isfinite(vectors).all():
        raise PogdiffError("The extractor gave a feature that is not finite.", exit_code=Exit.NON_FINITE)
    return Embeddings(vectors=vectors, missing=missing)


def _length(images: Iterable[Image.Image]) -> int | None:
    return len(images) if isinstance(images, Collection) else None


def _batches(images: Iterator[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    while batch := list(islice(images, size)):
        yield batch


def digest_of_files(files: Iterable[Path], preprocessing: Mapping[str, Any]) -> str:
    """SHA-256 over the files' bytes and the preprocessing as sorted JSON."""
    digest = hashlib.sha256(json.dumps(preprocessing, sort_keys=True).encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(
                hashlib.file_digest(file, "sha256").digest() if hasattr(hashlib, "file_digest") else _sha(file)
            )
    return digest.hexdigest()


def _sha(file: Any) -> bytes:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.digest()


def refuse_unknown(spec: str, opts: Mapping[str, Any], known: Collection[str]) -> None:
    """An option that nobody reads would be a wish ignored in silence."""
    for key in opts:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(known)) or 'none'}."
            raise PogdiffError(f"The extractor {spec} has no option {key!r}.", hint=hint, exit_code=Exit.USAGE)


def existing_file(spec: str, path: Any, what: str, hint: str) -> Path:
    """The path of a file that must be there."""
    if not path:
        raise PogdiffError(f"The extractor {spec} needs {what}.", hint=hint, exit_code=Exit.MISSING)
    if not Path(path).is_file():
        raise PogdiffError(f"{what} is not at {path}.", hint=hint, exit_code=Exit.MISSING)
    return Path(path)
