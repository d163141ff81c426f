"""Vision-language models that judge pictures: ``openai:MODEL``, ``hf:ID_OR_DIR``, ``py:module:function``."""

from __future__ import annotations

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.access import Access
from pogdiff_cli.models.judges.protocol import EndpointJudge, Judge, PythonJudge, Question

__all__ = ["Judge", "Question", "load_judge"]


def load_judge(spec: str, access: Access) -> Judge:
    """The judge that ``spec`` names; its libraries are imported here and not before.

    Options go into each request of ``openai:``; ``hf:`` knows ``temperature`` and ``max_new_tokens``.
    """
    kind, _, rest = spec.partition(":")
    if kind == "openai" and rest:
        return EndpointJudge(name=spec, threads=access.threads, endpoint=access.endpoint(rest))
    if kind == "hf" and rest:
        from pogdiff_cli.models.judges.local import load_local

        return load_local(spec, access.options, access.device)
    if kind == "py" and rest:
        return PythonJudge(name=spec, function=access.function(spec))
    raise PogdiffError(
        f"The judge {spec!r} is unknown.",
        hint="Name openai:MODEL, hf:ID_OR_DIR[@revision] or py:module:function.",
        exit_code=Exit.USAGE,
    )
