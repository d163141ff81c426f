"""Two bare matrices of features, no identities: what ``evaluate --real-features --fake-features`` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy.typing as npt

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.features import Array, as_pair
from pogdiff_cli.metrics.frechet import frechet
from pogdiff_cli.metrics.kernel import kernel_distance
from pogdiff_cli.metrics.prdc import prdc
from pogdiff_cli.metrics.registry import did_you_mean
from pogdiff_cli.metrics.similarity import mean_cosine


def score_raw(
    real: npt.ArrayLike, fake: npt.ArrayLike, requests: Sequence[str], *, nearest_k: int = 5
) -> dict[str, float | None]:
    """Real (n, d), fake (m, d) -> keys fid, kid, precision, recall, density, coverage, similarity as asked.

    ``recall`` is that of ``prdc`` here: Eq. 17 needs to know who is who. A value that the sets are too
    small for is None.
    """
    first, second = as_pair(real, fake)
    result: dict[str, float | None] = {}
    for request in requests:
        if request not in _RAW:
            raise PogdiffError(
                f"{request!r} cannot be computed from bare features.",
                hint=did_you_mean(request, _RAW),
                exit_code=Exit.USAGE,
            )
        result.update(_RAW[request](first, second, nearest_k))
    return result


def _fid(real: Array, fake: Array, nearest_k: int) -> dict[str, float | None]:
    del nearest_k
    found = frechet(real, fake)
    return {
        "fid": found.distance,
        "fid_mean_part": found.mean_part,
        "fid_trace_part": found.trace_part,
        "mean_gap_unbiased": found.mean_gap_unbiased,
    }


def _kid(real: Array, fake: Array, nearest_k: int) -> dict[str, float | None]:
    del nearest_k
    return {"kid": kernel_distance(real, fake)}


def _prdc(real: Array, fake: Array, nearest_k: int) -> dict[str, float | None]:
    found = prdc(real, fake, nearest_k=nearest_k)
    return {name: getattr(found, name, None) for name in ("precision", "recall", "density", "coverage")}


def _similarity(real: Array, fake: Array, nearest_k: int) -> dict[str, float | None]:
    del nearest_k
    return {"similarity": mean_cosine(fake, real)}


_RAW: Mapping[str, Callable[[Array, Array, int], dict[str, float | None]]] = {
    "fid": _fid,
    "kid": _kid,
    "prdc": _prdc,
    "dino": _similarity,
}
