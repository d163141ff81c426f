"""What an extractor needs on this machine, told without loading any of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.snapshots import local_snapshot, refuse_without_weights

_OF_A_MODEL = (".safetensors", ".json", ".txt", ".jinja", ".model")


def refuse_absent(spec: str, opts: Mapping[str, Any]) -> None:
    """Exit 4 with the command to type where weights or a package are missing."""
    kind, _, rest = spec.partition(":")
    if kind == "dlib":
        from pogdiff_cli.models.extractors.dlib_face import refuse_without_files

        refuse_without_files(spec, opts)
        _refuse_without("dlib", spec, "Run: pip install 'pogdiff[demo]'")
    elif kind == "hf" and rest:
        refuse_without_weights(spec, "extractor")
    elif kind == "timm" and rest:
        from pogdiff_cli.models.extractors.timm_model import HOW_TO_INSTALL, weights_spec

        refuse_without_weights(weights_spec(spec), "extractor")
        for package in ("timm", "torchvision"):
            _refuse_without(package, spec, HOW_TO_INSTALL)
    elif kind == "onnx" and rest:
        path = Path(rest.partition("#")[0])
        if not path.is_file():
            raise PogdiffError(f"There is no ONNX file {path}.", exit_code=Exit.MISSING)
        _refuse_without("onnxruntime", spec, "Run: pip install 'pogdiff[onnx]'")


def files_of(spec: str, opts: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files that decide what a network says, of extractors, captioners and judges alike; none of other kinds.

    Exit 4 where they are not here.
    """
    kind, _, rest = spec.partition(":")
    if kind == "dlib":
        from pogdiff_cli.models.extractors.dlib_face import refuse_without_files

        named = (Path(opts[key]) for key in ("detector", "predictor") if isinstance(opts.get(key), str))
        return (refuse_without_files(spec, opts), *(path for path in named if path.is_file()))
    if kind == "onnx" and rest:
        refuse_absent(spec, opts)
        return (Path(rest.partition("#")[0]),)
    if kind not in ("hf", "timm") or not rest:
        return ()
    if kind == "timm":
        from pogdiff_cli.models.extractors.timm_model import weights_spec

        spec = weights_spec(spec)
    folder = local_snapshot(spec, "model")
    return tuple(sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _OF_A_MODEL))


def _refuse_without(package: str, spec: str, hint: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise PogdiffError(f"The extractor {spec} needs {package}.", hint=hint, exit_code=Exit.MISSING)
