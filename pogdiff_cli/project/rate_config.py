"""How ``pogdiff rate`` asks people."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pogdiff_cli.project.section import Section


class RateConfig(Section):
    """What raters are shown and asked, and what becomes of a rater who does not look."""

    protocol: Literal["same", "similarity"] = "same"  # App. B, Table 3: the same person (1.0) or not (0.0)
    subject: str = Field("person", min_length=1, max_length=40)
    groups: tuple[Literal["few", "medium", "many"], ...] = Field(("few", "medium", "many"), min_length=1)
    identities_per_group: int = Field(20, ge=1)
    images_per_identity: int = Field(5, ge=1)  # App. B
    references: int = Field(2, ge=1, le=6)
    repeats: float = Field(0.1, ge=0, le=1)
    attention_checks: int = Field(6, ge=0)
    attention_pass: float = Field(0.8, gt=0, le=1)
    failed_raters: Literal["keep", "exclude"] = "keep"
    image_side: int = Field(256, ge=64, le=1024)
    max_megabytes: int = Field(25, ge=1, le=200)
