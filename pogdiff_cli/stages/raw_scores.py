"""``pogdiff evaluate --real-features R.npy --fake-features F.npy``: scores of features from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.raw import score_raw


def score_files(real: Path, fake: Path, metrics: Sequence[str]) -> dict[str, float | None]:
    """Two (n, d) arrays in .npy files -> fid, kid, precision, recall, density, coverage, as asked for."""
    return score_raw(_features(real), _features(fake), metrics)


def _features(path: Path) -> NDArray[np.float64]:
    try:
        # mapped: a header that promises more than the file holds is refused before memory is asked for
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise PogdiffError(f"There is no file {path}.", exit_code=Exit.MISSING) from None
    except (ValueError, OSError, EOFError, ArithmeticError, SyntaxError, TypeError) as problem:
        pickled = "pickle" in str(problem) or "object" in str(problem)
        reason = "it holds pickled objects, which are never loaded" if pickled else problem
        raise PogdiffError(
            f"{path} is no .npy file of numbers: {reason}.",
            hint="Save features with numpy.save(path, array).",
            exit_code=Exit.DATA,
        ) from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
        raise PogdiffError(f"{path} must hold one row of numbers an image, (n, d).", exit_code=Exit.DATA)
    return np.asarray(values, dtype=np.float64)
