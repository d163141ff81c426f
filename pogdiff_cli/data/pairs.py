"""The neighbour y' of a caption y: one of the k most similar images, drawn by the weights of Eq. (8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Neighbours drawn for a batch of b records; each field (b,)."""

    neighbour_row: NDArray[np.int64]
    similarity: NDArray[np.float32]  # s of Eq. (9): that of the drawn neighbour
    same_identity: NDArray[np.bool_]  # I(x) = I(x')
    same_text: NDArray[np.bool_]  # y' = y: the term is exactly 0, its forward can be skipped


class Pairs:
    """k neighbours a record, and how one of them is drawn.

    rows (n, k): records; similarities (n, k): cosines; weights (n, k): Eq. (8), rows sum to 1; identity (n,);
    texts n: captions, or numbers that are equal where captions are.
    """

    def __init__(
        self,
        *,
        rows: NDArray[np.int64],
        similarities: NDArray[np.float32],
        weights: NDArray[np.floating],
        identity: NDArray[np.integer],
        texts: Sequence[str] | NDArray[np.integer],
    ) -> None:
        n = len(texts)
        if not rows.shape == similarities.shape == weights.shape or len(rows) != n or len(identity) != n:
            raise ValueError(
                f"rows {rows.shape}, similarities {similarities.shape}, weights {weights.shape}: not (n, k) "
                f"for the n of {len(identity)} identities and {n} texts"
            )
        if rows.min() < 0 or rows.max() >= n or np.any(rows == np.arange(n)[:, None]):
            raise ValueError("a neighbour is a row of another record")
        cumulated = np.cumsum(np.asarray(weights, dtype=np.float64), axis=1)
        if np.any(np.asarray(weights) < 0) or not np.allclose(cumulated[:, -1], 1.0, atol=1e-5):
            raise ValueError("the weights of a record are non-negative and sum to 1")
        self._rows, self._similarities = rows, similarities
        # the last edge is exactly 1, so that no draw u < 1 falls beyond it by rounding
        self._edges = cumulated / cumulated[:, -1:]
        self._identity = np.asarray(identity)
        named = texts if isinstance(texts, np.ndarray) else np.asarray(texts, dtype=object).astype(str)
        self._text = np.unique(named, return_inverse=True)[1]

    @property
    def k(self) -> int:
        """Neighbours of each record."""
        return int(self._rows.shape[1])

    def draw(self, rows: NDArray[np.int64], uniforms: NDArray[np.float64]) -> Drawn:
        """J = min{j : u < w_1 + ... + w_j}: record rows (b,) and U[0, 1) draws (b,) or (b, 1) -> Drawn."""
        u = np.asarray(uniforms, dtype=np.float64).reshape(len(rows), 1)
        chosen = (u >= self._edges[rows]).sum(axis=1)
        neighbour = self._rows[rows, chosen]
        return Drawn(
            neighbour_row=neighbour.astype(np.int64),
            similarity=self._similarities[rows, chosen].astype(np.float32),
            same_identity=self._identity[neighbour] == self._identity[rows],
            same_text=self._text[neighbour] == self._text[rows],
        )

    def same_text_share(self) -> float:
        """Share of neighbours with their record's own caption: they teach nothing."""
        return float((self._text[self._rows] == self._text[:, None]).mean())
