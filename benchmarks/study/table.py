"""What was found so far, as text: a line a condition, few and many, means over seeds and identities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SHOWN = ("identity", "similarity", "recall", "fid", "mean_gap_unbiased", "bleed", "copy")


def table(results: Sequence[dict[str, Any]]) -> str:
    """One line a condition: seeds, and for each metric few / many."""
    lines = [f"{'condition':28s} n  " + "".join(f"{name[:14]:>16s}" for name in SHOWN) + "   neighbour/denoise"]
    for condition in dict.fromkeys(result["condition"] for result in results):
        own = [result for result in results if result["condition"] == condition]
        cells = [f"{mean(own, name, 'few'):.3f} / {mean(own, name, 'many'):.3f}" for name in SHOWN]
        ratio = np.mean([(result["neighbour"] or 0.0) / result["denoise"] for result in own])
        lines.append(f"{condition:28s} {len(own)}  " + "".join(f"{cell:>16s}" for cell in cells) + f"   {ratio:.3f}")
    return "\n".join(lines)


def mean(results: Sequence[dict[str, Any]], metric: str, shot: str) -> float:
    """Mean over seeds and the identities of a group that have a value."""
    values = [
        identity[metric]
        for result in results
        for identity in result["identities"]
        if identity["shot"] == shot and identity[metric] is not None
    ]
    return float(np.mean(values)) if values else float("nan")
