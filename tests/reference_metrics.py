"""The formulas of other libraries, imported without torchvision: they need it to read pictures, not to count."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Distance = Callable[[Array, Array], float]

_TORCHVISION = ("", ".datasets", ".models", ".models.inception", ".transforms", ".transforms.functional")


class _Picturing(ModuleType):
    """Any name in it is an empty class, which other classes may be derived from."""

    __version__ = "0.0"

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def _stand_in_for_torchvision() -> Iterator[None]:
    """In force while the libraries are imported, and gone after: transformers asks whether torchvision is there."""
    before = {name: sys.modules.get(name) for name in (f"torchvision{part}" for part in _TORCHVISION)}
    modules = {name: _Picturing(name) for name in before}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@cache
def frechet_distances() -> Mapping[str, Distance]:
    """By library, from features: means and covariances as each of them fits these, and its own distance."""
    import torch

    with _stand_in_for_torchvision():
        from cleanfid.fid import frechet_distance
        from pytorch_fid.fid_score import calculate_frechet_distance
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid  # last: it takes parts of torch_fidelity

    def fitted(rows: Array) -> tuple[Array, Array]:
        return rows.mean(axis=0), np.cov(rows, rowvar=False)

    def fidelity(real: Array, fake: Array) -> float:
        statistics = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (real, fake)]
        return float(fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])

    def metrics(real: Array, fake: Array) -> float:
        return float(_compute_fid(*(torch.from_numpy(part) for rows in (real, fake) for part in fitted(rows))))

    return {
        "pytorch-fid": lambda real, fake: float(calculate_frechet_distance(*fitted(real), *fitted(fake))),
        "clean-fid": lambda real, fake: float(frechet_distance(*fitted(real), *fitted(fake))),
        "torch-fidelity": fidelity,
        "torchmetrics": metrics,
    }


@cache
def kernel_distances() -> Mapping[str, Distance]:
    """By library. They draw subsets of one size: with two sets of that size, every subset is the whole set."""
    import torch

    with _stand_in_for_torchvision():
        import torch_fidelity  # noqa: F401 - torchmetrics takes parts of it
        from cleanfid.fid import kernel_distance
    from torchmetrics.image.kid import poly_mmd

    return {
        "clean-fid": lambda real, fake: float(kernel_distance(real, fake, num_subsets=1, max_subset_size=len(real))),
        "torchmetrics": lambda real, fake: float(poly_mmd(torch.from_numpy(real), torch.from_numpy(fake))),
    }
