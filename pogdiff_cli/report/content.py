"""What a report is made of: plain values and pictures, gathered by whoever knows the project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pogdiff_cli.metrics.compare import Comparison
from pogdiff_cli.metrics.features import Array
from pogdiff_cli.metrics.inputs import Shot
from pogdiff_cli.metrics.ratings import HumanScores
from pogdiff_cli.metrics.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image by its file or its encoded bytes; ``seed`` puts generated ones of all runs into one column."""

    source: Path | bytes
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class LossPoint:
    """Parts of the loss at one step, by name: "denoise", "neighbour", "validation few"..."""

    step: int
    parts: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """One run: numbers, curves, pictures. What is missing is left empty, and the page says so."""

    name: str
    method: str
    scores: Scores | None = None
    losses: tuple[LossPoint, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    exposure: Mapping[str, int] = field(default_factory=dict)  # training images drawn, by identity
    gallery: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)  # by identity
    human: HumanScores | None = None


@dataclass(frozen=True, kw_only=True)
class IdentityReport:
    """One identity of the data."""

    identity: str
    name: str
    shot: Shot
    train_count: int
    heldout_count: int = 0
    training: tuple[Picture, ...] = ()
    heldout: tuple[Picture, ...] = ()
    psi_inv: float | None = None  # mean of Eq. 11 over its captions
    log_density: float | None = None  # mean ELBO of its captions


@dataclass(frozen=True, kw_only=True)
class EmbeddingMap:
    """Fig. 9: features of one identity's real images (n, d) and of each run's generated ones (g, d)."""

    identity: str
    extractor: str
    real: Array
    generated: Mapping[str, Array]  # by run name
    others: Array | None = None  # real images of other identities (o, d): whom a wrong image resembles


@dataclass(frozen=True, kw_only=True)
class ProvenanceRow:
    """What an artifact was made from and by."""

    artifact: str
    digest: str
    command: str = ""
    versions: str = ""
    duration: str = ""


@dataclass(frozen=True, kw_only=True)
class ReferenceTable:
    """Numbers printed elsewhere, a paper's for instance: shown apart and never mixed with ours."""

    title: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything on the page."""

    project: str
    created: str
    runs: tuple[RunReport, ...]
    identities: tuple[IdentityReport, ...]
    comparisons: tuple[Comparison, ...] = ()
    maps: tuple[EmbeddingMap, ...] = ()
    references: tuple[ReferenceTable, ...] = ()
    provenance: tuple[ProvenanceRow, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)  # of the project
    warnings: tuple[str, ...] = ()
    gallery_identities: int = 40  # at most; tails first
    gallery_columns: int = 8  # seeds shown at most
