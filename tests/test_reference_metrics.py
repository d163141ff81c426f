"""The distances of this package against those of the libraries that the field uses, forty digits as the arbiter."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pytest
from prdc import compute_prdc
from reference_metrics import frechet_distances, kernel_distances
from test_frechet import oracle

from pogdiff_cli.metrics.frechet import frechet
from pogdiff_cli.metrics.kernel import kernel_distance
from pogdiff_cli.metrics.prdc import prdc

Array = npt.NDArray[np.float64]
LIBRARIES = ("pytorch-fid", "clean-fid", "torch-fidelity", "torchmetrics")

FULL_RANK = [(200, 150, 16), (64, 80, 32), (30, 12, 6), (40, 40, 2)]
RANK_DEFICIENT = [(12, 12, 12), (9, 3, 4), (30, 100, 128), (20, 20, 64)]
TINY = [(2, 2, 5), (2, 2, 128), (2, 30, 128), (3, 2, 64), (2, 7, 12)]


def features(n: int, m: int, d: int, *, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng([seed, n, m, d])
    return rng.standard_normal((n, d)), 0.3 + 1.7 * rng.standard_normal((m, d))


@pytest.mark.parametrize("shape", [*FULL_RANK, *RANK_DEFICIENT, *TINY], ids=str)
@pytest.mark.parametrize("library", LIBRARIES)
def test_frechet_distance_is_that_of_other_libraries(library: str, shape: tuple[int, int, int]) -> None:
    real, fake = features(*shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the square root of a singular matrix is not to its library's liking
        theirs = frechet_distances()[library](real, fake)
    assert frechet(real, fake).distance == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_where_two_images_nearly_agree_other_libraries_drift_and_this_one_does_not(library: str) -> None:
    """Sets of two, a ten-thousandth apart: their sum of large numbers that cancel loses what is looked for."""
    real, noise = features(2, 2, 64)
    fake = real + 1e-4 * noise
    truth = oracle(real, fake)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = frechet_distances()[library](real, fake)
    assert frechet(real, fake).distance == pytest.approx(truth, rel=1e-9)
    assert abs(theirs - truth) > 1e-6 * truth


@pytest.mark.parametrize("library", ["clean-fid", "torchmetrics"])
@pytest.mark.parametrize(("n", "d"), [(2, 8), (7, 3), (60, 40)])
def test_kernel_distance_over_whole_sets_is_that_of_other_libraries(library: str, n: int, d: int) -> None:
    real, fake = features(n, n, d)
    theirs = kernel_distances()[library](real, fake)
    assert kernel_distance(real, fake) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("nearest_k", [1, 3, 5])
@pytest.mark.parametrize("shape", [(40, 25, 6), (9, 60, 3), (7, 7, 128)], ids=str)
def test_shares_of_neighbourhoods_are_those_of_the_prdc_package(shape: tuple[int, int, int], nearest_k: int) -> None:
    real, fake = features(*shape)
    fake = fake / 2  # so that the shares are neither 0 nor 1
    ours = prdc(real, fake, nearest_k=nearest_k)
    theirs = compute_prdc(real, fake, nearest_k=nearest_k)
    assert ours is not None
    assert {name: getattr(ours, name) for name in theirs} == pytest.approx(theirs, abs=1e-12)


def test_a_set_too_small_for_neighbourhoods_is_refused_by_the_prdc_package_as_well() -> None:
    """k + 1 images: the k-th neighbour is asked for at position k + 1, which is not there."""
    real, fake = features(6, 20, 4)
    with pytest.raises(ValueError, match="out of bounds"):
        compute_prdc(real, fake, nearest_k=5)
    assert prdc(real, fake, nearest_k=5) is None
