"""What the sections have in common that may speak to an OpenAI-compatible endpoint."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator

from pogdiff_cli.project.section import OPERATIONAL, SECRET, Section


class EndpointSection(Section):
    """Where a vision-language model is asked, under whose key, and how patiently."""

    options: dict[str, str | int | float | bool | dict[str, Any]] = Field(default_factory=dict)
    base_url: str = Field("https://api.openai.com/v1", json_schema_extra=OPERATIONAL | SECRET)
    api_key_env: str | None = Field("OPENAI_API_KEY", json_schema_extra=OPERATIONAL | SECRET)
    max_retries: int = Field(8, ge=0, json_schema_extra=OPERATIONAL)
    concurrency: int = Field(4, ge=1, le=256, json_schema_extra=OPERATIONAL)
    timeout: float = Field(60.0, gt=0, json_schema_extra=OPERATIONAL)

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
