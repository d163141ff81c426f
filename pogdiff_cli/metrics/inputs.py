"""What is scored and how: features of each identity's images, and the settings behind a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.features import Array, as_features

Shot = Literal["many", "medium", "few"]


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """One extractor's features of one identity. A row of NaN is an image in which no face was found."""

    train: Array  # (n, d)
    heldout: Array  # (m, d)
    fake: Array  # (g, d), one row a generated image, in the order of IdentityFeatures.seeds


@dataclass(frozen=True, kw_only=True)
class IdentityFeatures:
    """One identity: who, how often trained on, and its images under each extractor."""

    identity: str
    name: str
    shot: Shot
    train_count: int
    heldout_count: int
    seeds: tuple[int, ...]  # (g,), the seed of each generated image; the same seeds in every run that is compared
    features: Mapping[str, FeatureSet]  # by extractor key


@dataclass(frozen=True, kw_only=True)
class ExtractorInfo:
    """Whose features they are, down to the digest."""

    name: str
    digest: str
    dim: int


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Everything a number depends on beside the images; recorded with it."""

    extractor_of: Mapping[str, str]  # requested metric -> extractor key, in the order they were asked for
    true_set: Literal["heldout", "exact"] = "heldout"  # exact: all images of the identity (App. B)
    images_per_identity: int | Literal["equal", "all"] = "equal"  # equal: as many as the identity with the fewest
    few_images_per_identity: int | None = None  # of the group few where it has a number of its own (Sec. 4.1: 500)
    recall_threshold: float = 0.9  # App. E
    copy_threshold: float = 0.98
    nearest_k: int = 5  # Naeem 2020
    no_face: Literal["wrong", "excluded"] = "wrong"  # what a generated image without a face is to identity accuracy
    level: float = 0.95
    resamples: int = 4000
    least_identities: int = 10
    seed: int = 0
    extra: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))  # sampling: steps, guidance


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One extractor's usable rows of one identity, images without a face set aside and counted."""

    train: Array
    heldout: Array
    fake: Array
    missing_train: int
    missing_heldout: int
    missing_fake: int

    def true(self, true_set: Literal["heldout", "exact"]) -> Array:
        """The real images that generated ones are compared with."""
        return self.heldout if true_set == "heldout" else np.concatenate([self.train, self.heldout])


def usable(features: FeatureSet, rows: slice | npt.NDArray[np.intp], identity: str) -> Sample:
    """Keep the generated rows asked for, then drop and count the rows without a face in each set."""
    train, lost_train = _with_face(features.train, f"training ({identity})")
    heldout, lost_heldout = _with_face(features.heldout, f"held-out ({identity})")
    fake, lost_fake = _with_face(np.asarray(features.fake, dtype=np.float64)[rows], f"generated ({identity})")
    return Sample(
        train=train,
        heldout=heldout,
        fake=fake,
        missing_train=lost_train,
        missing_heldout=lost_heldout,
        missing_fake=lost_fake,
    )


def _with_face(features: Array, label: str) -> tuple[Array, int]:
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2:
        raise PogdiffError(f"The {label} features have shape {matrix.shape}; a matrix is needed.", exit_code=Exit.DATA)
    found = ~np.isnan(matrix).all(axis=1)
    return as_features(matrix[found], label), int((~found).sum())


def images_scored(identities: Mapping[str, IdentityFeatures], settings: ScoreSettings) -> dict[str, int]:
    """How many generated images of each identity are scored, the first ones in the order of the seeds."""
    available = {key: len(identity.seeds) for key, identity in identities.items()}
    if settings.images_per_identity == "all":
        counts = available
    elif settings.images_per_identity == "equal":
        fewest = min((count for count in available.values() if count), default=0)
        counts = {key: min(count, fewest) for key, count in available.items()}
    else:
        counts = _exactly(available, settings.images_per_identity)
    limit = settings.few_images_per_identity
    if limit is None:
        return counts
    tail = {key: count for key, count in available.items() if identities[key].shot == "few"}
    return {**counts, **_exactly(tail, limit)}


def _exactly(available: Mapping[str, int], limit: int) -> dict[str, int]:
    """So many of each, or the refusal to score fewer."""
    short = [key for key, count in available.items() if count < limit]
    if short:
        who = "1 identity has" if len(short) == 1 else f"{len(short)} identities have"
        raise PogdiffError(
            f"{who} fewer than {limit} generated images, {short[0]!r} among them.",
            hint="Sample more images, or lower the number scored per identity.",
            exit_code=Exit.MISSING,
        )
    return dict.fromkeys(available, limit)
