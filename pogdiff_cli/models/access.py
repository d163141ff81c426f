"""How captioners and judges are reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pogdiff_cli.models.python_hook import import_function

if TYPE_CHECKING:
    from pogdiff_cli.models.endpoint import Endpoint


@dataclass(frozen=True, kw_only=True)
class Access:
    """What ``openai:``, ``hf:`` and ``py:`` models are opened with; each reads what concerns it."""

    options: Mapping[str, Any] = field(default_factory=dict)  # fields of a request, or of generation
    base_url: str = ""
    key_variable: str | None = None
    timeout: float = 60.0
    retries: int = 8
    threads: int = 1
    allow_python: bool = False
    device: str = "cpu"

    def endpoint(self, model: str) -> Endpoint:
        """The client of ``openai:MODEL``; its library is imported here and not before."""
        from pogdiff_cli.models.endpoint import Endpoint

        return Endpoint(
            base_url=self.base_url,
            model=model,
            key_variable=self.key_variable,
            options=self.options,
            timeout=self.timeout,
            retries=self.retries,
            connections=self.threads,
        )

    def function(self, spec: str) -> Callable[..., Any]:
        """The function of ``py:module:function``, where that is allowed."""
        return import_function(spec, allowed="yes" if self.allow_python else "no")
