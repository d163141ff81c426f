"""Captioners that look at the picture: ``hf:ID_OR_DIR``, ``openai:MODEL``, ``py:module:function``.

Wording templates and the user's own files need none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.captioners.protocol import Captioner, PythonCaptioner
from pogdiff_cli.models.python_hook import import_function

__all__ = ["Captioner", "load_captioner"]


def load_captioner(
    spec: str,
    *,
    instruction: str = "",
    options: Mapping[str, Any] | None = None,
    base_url: str = "",
    key_variable: str | None = None,
    timeout: float = 60.0,
    retries: int = 8,
    threads: int = 1,
    allow_python: bool = False,
    device: str = "cpu",
) -> Captioner:
    """The captioner that ``spec`` names; its libraries are imported here and not before.

    ``options`` go into each request of ``openai:``; ``hf:`` knows ``max_new_tokens``.
    """
    kind, _, rest = spec.partition(":")
    if kind == "hf" and rest:
        from pogdiff_cli.models.captioners.local import load_local

        return load_local(spec, instruction, options or {}, device)
    if kind == "openai" and rest:
        from pogdiff_cli.models.captioners.hosted import EndpointCaptioner
        from pogdiff_cli.models.endpoint import Endpoint

        endpoint = Endpoint(
            base_url=base_url,
            model=rest,
            key_variable=key_variable,
            options=options,
            timeout=timeout,
            retries=retries,
            connections=threads,
        )
        return EndpointCaptioner(name=spec, endpoint=endpoint, instruction=instruction, threads=threads)
    if kind == "py" and rest:
        return PythonCaptioner(name=spec, function=import_function(spec, allowed="yes" if allow_python else "no"))
    raise PogdiffError(
        f"The captioner {spec!r} is unknown.",
        hint="Name template, files, hf:ID_OR_DIR[@revision], openai:MODEL or py:module:function.",
        exit_code=Exit.USAGE,
    )
