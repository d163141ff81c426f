"""Vision-language models that judge pictures: ``openai:MODEL``, ``hf:ID_OR_DIR``, ``py:module:function``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.judges.protocol import Judge, PythonJudge, Question
from pogdiff_cli.models.python_hook import import_function

__all__ = ["Judge", "Question", "load_judge"]


def load_judge(
    spec: str,
    *,
    options: Mapping[str, Any],
    base_url: str,
    key_variable: str | None,
    timeout: float,
    retries: int,
    threads: int,
    allow_python: bool,
    device: str,
) -> Judge:
    """The judge that ``spec`` names; its libraries are imported here and not before.

    ``options`` go into each request of ``openai:``; ``hf:`` knows ``temperature`` and ``max_new_tokens``.
    """
    kind, _, rest = spec.partition(":")
    if kind == "openai" and rest:
        from pogdiff_cli.models.endpoint import Endpoint
        from pogdiff_cli.models.judges.protocol import EndpointJudge

        endpoint = Endpoint(
            base_url=base_url,
            model=rest,
            key_variable=key_variable,
            options=options,
            timeout=timeout,
            retries=retries,
            connections=threads,
        )
        return EndpointJudge(name=spec, threads=threads, endpoint=endpoint)
    if kind == "hf" and rest:
        from pogdiff_cli.models.judges.local import load_local

        return load_local(spec, options, device)
    if kind == "py" and rest:
        function = import_function(spec, allowed="yes" if allow_python else "no")
        return PythonJudge(name=spec, function=function)
    raise PogdiffError(
        f"The judge {spec!r} is unknown.",
        hint="Name openai:MODEL, hf:ID_OR_DIR[@revision] or py:module:function.",
        exit_code=Exit.USAGE,
    )
