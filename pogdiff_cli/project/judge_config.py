"""The section ``evaluate.judge``."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from pogdiff_cli.project.section import OPERATIONAL, SECRET, Section


class JudgeConfig(Section):
    """The vision-language model behind the metric ``judge``: who is asked, what, how often, at what cost."""

    model: str | None = None  # openai:MODEL, hf:ID_OR_DIR or py:module:function
    protocol: Literal["paper", "reference"] = "reference"  # paper: the prompt of App. B
    repeats: int = Field(10, ge=1)  # App. B
    images_per_identity: int = Field(5, ge=1)  # App. B
    options: dict[str, str | int | float | bool | dict[str, Any]] = Field(default_factory=dict)
    base_url: str = Field("https://api.openai.com/v1", json_schema_extra=OPERATIONAL | SECRET)
    api_key_env: str | None = Field("OPENAI_API_KEY", json_schema_extra=OPERATIONAL | SECRET)
    max_requests: int = Field(1000, ge=0, json_schema_extra=OPERATIONAL)
    max_retries: int = Field(8, ge=0, json_schema_extra=OPERATIONAL)
    concurrency: int = Field(4, ge=1, le=256, json_schema_extra=OPERATIONAL)
    timeout: float = Field(60.0, gt=0, json_schema_extra=OPERATIONAL)
    allow_python: bool = Field(False, json_schema_extra=OPERATIONAL)  # whether model may name py:module:function

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError("must name an environment variable; the key itself stays out of files and commands")
        return value

    @field_validator("base_url")
    @classmethod
    def _is_a_plain_address(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", value):
            raise ValueError("must be http(s)://HOST[:PORT][/PATH], without user, password and query")
        return value.rstrip("/")

    @field_validator("options")
    @classmethod
    def _leaves_the_question_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"model", "messages", "stream", "n"} & set(value)):
            raise ValueError(f"{', '.join(taken)} cannot be set here")
        return value
