"""Feature extractors by their specification: ``dlib``, ``hf:ID#cls``, ``timm:NAME``, ``onnx:PATH``, ``py:M:NAME``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.extractors.protocol import Embeddings, Extractor

__all__ = ["Embeddings", "Extractor", "load_extractor"]

_KINDS = (
    "dlib, hf:ID_OR_DIR[@revision]#cls|pooler|mean, timm:NAME_OR_DIR[@revision], onnx:PATH[#output], py:module:function"
)


def load_extractor(spec: str, *, opts: Mapping[str, Any] | None = None, device: str = "cpu") -> Extractor:
    """The extractor that ``spec`` names; its package is imported here and not before.

    ``opts`` by kind: dlib: ``weights``, ``chip`` or ``aligner: landmarks`` with ``predictor`` and
    ``detector``; onnx: ``size``, ``mean``, ``std``, ``scale``, ``channels``; py: ``allow_python: true``.
    """
    kind, _, rest = spec.partition(":")
    opts = opts or {}
    if kind == "dlib":
        from pogdiff_cli.models.extractors.dlib_face import load

        return load(spec, opts)
    if kind == "hf" and rest:
        from pogdiff_cli.models.extractors.hub import load_hub

        return load_hub(spec, opts, device)
    if kind == "timm" and rest:
        from pogdiff_cli.models.extractors.timm_model import load_timm

        return load_timm(spec, opts, device)
    if kind == "onnx" and rest:
        from pogdiff_cli.models.extractors.onnx_graph import load_onnx

        return load_onnx(spec, opts, device)
    if kind == "py" and rest:
        from pogdiff_cli.models.extractors.python_function import load_python

        return load_python(spec, opts)
    raise PogdiffError(f"The extractor {spec!r} is unknown.", hint=f"Name one of {_KINDS}.", exit_code=Exit.USAGE)
