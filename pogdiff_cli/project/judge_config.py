"""The section ``evaluate.judge``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pogdiff_cli.project.endpoint_config import EndpointSection
from pogdiff_cli.project.section import OPERATIONAL


class JudgeConfig(EndpointSection):
    """The vision-language model behind the metric ``judge``: who is asked, what, how often, at what cost."""

    model: str | None = None  # openai:MODEL, hf:ID_OR_DIR or py:module:function
    protocol: Literal["paper", "reference"] = "reference"  # paper: the prompt of App. B
    repeats: int = Field(10, ge=1)  # App. B
    images_per_identity: int = Field(5, ge=1)  # App. B
    max_requests: int = Field(1000, ge=0, json_schema_extra=OPERATIONAL)
    allow_python: bool = Field(False, json_schema_extra=OPERATIONAL)  # whether model may name py:module:function
