"""Embeddings, in memory or memory-mapped, read as unit vectors a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.errors import Exit, PogdiffError

CHUNK = 65_536  # rows read at once: 100 MB at 384 dimensions


class UnitRows:
    """z_i / |z_i| in float32 for the rows asked for, without a second copy of them all.

    A row of zeros, or one of ``absent`` (n,), has no direction: it is read as zeros, similar to nothing.
    """

    def __init__(self, embeddings: NDArray[np.floating], *, absent: NDArray[np.bool_] | None = None) -> None:
        self._embeddings = np.asarray(embeddings)  # of a memory map: a view, whose rows are read faster
        self._lengths = np.ones(len(embeddings), dtype=embeddings.dtype)
        self.absent = np.zeros(len(embeddings), dtype=np.bool_) if absent is None else absent.copy()
        for rows in chunks(len(embeddings)):
            self._measure(rows)

    @property
    def present(self) -> int:
        """Rows that have a direction."""
        return len(self.absent) - int(self.absent.sum())

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and dimensions."""
        return len(self._embeddings), int(self._embeddings.shape[1])

    def __len__(self) -> int:
        return len(self._embeddings)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit vectors (m, d) of some rows: the same bits in whatever company a row is asked for."""
        units = np.array(self._embeddings[rows], copy=isinstance(rows, slice) or None)  # row numbers copy by themselves
        units /= self._lengths[rows, None]
        absent = self.absent[rows]
        if absent.any():
            units[absent] = 0.0
        return np.ascontiguousarray(units, dtype=np.float32)

    def _measure(self, rows: slice) -> None:
        part = np.asarray(self._embeddings[rows])
        # float64: the squares of large float32 features would overflow
        squares = np.einsum("nd,nd->n", part, part, dtype=np.float64)
        if not np.isfinite(squares[~self.absent[rows]]).all():
            raise PogdiffError("An embedding is not finite.", exit_code=Exit.NON_FINITE)
        self.absent[rows] |= squares == 0
        self._lengths[rows] = np.where(self.absent[rows], 1.0, np.sqrt(squares))


def chunks(n: int, size: int = CHUNK) -> Iterator[slice]:
    """Slices of at most ``size`` rows that cover n rows in order."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def faiss_after_torch() -> Any:
    """Faiss, imported after torch: loading two OpenMP runtimes in the other order crashes on some platforms."""
    import torch  # noqa: F401, I001
    import faiss

    return faiss
