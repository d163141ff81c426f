"""Captioners that look at the picture: ``hf:ID_OR_DIR``, ``openai:MODEL``, ``py:module:function``.

Wording templates and the user's own files need none.
"""

from __future__ import annotations

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.access import Access
from pogdiff_cli.models.captioners.protocol import Captioner, PythonCaptioner

__all__ = ["Captioner", "load_captioner"]


def load_captioner(spec: str, access: Access, *, instruction: str = "") -> Captioner:
    """The captioner that ``spec`` names; its libraries are imported here and not before.

    Options go into each request of ``openai:``; ``hf:`` knows ``max_new_tokens``.
    """
    kind, _, rest = spec.partition(":")
    if kind == "hf" and rest:
        from pogdiff_cli.models.captioners.local import load_local

        return load_local(spec, instruction, access.options, access.device)
    if kind == "openai" and rest:
        from pogdiff_cli.models.captioners.hosted import EndpointCaptioner

        endpoint = access.endpoint(rest)
        return EndpointCaptioner(name=spec, endpoint=endpoint, instruction=instruction, threads=access.threads)
    if kind == "py" and rest:
        return PythonCaptioner(name=spec, function=access.function(spec))
    raise PogdiffError(
        f"The captioner {spec!r} is unknown.",
        hint="Name template, files, hf:ID_OR_DIR[@revision], openai:MODEL or py:module:function.",
        exit_code=Exit.USAGE,
    )
