"""Functions of the user's own, named ``py:module:function``: run only where the user has said so."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal

from pogdiff_cli.errors import Exit, PogdiffError


def import_function(spec: str, *, allowed: Literal["yes", "no"]) -> Callable[..., Any]:
    """The function that ``py:module:function`` names; a configuration alone can never make code run."""
    if allowed != "yes":
        raise PogdiffError(
            f"{spec} would run Python code.",
            hint="If you trust it, set its option allow_python: true.",
            exit_code=Exit.USAGE,
        )
    module, separator, function = spec.removeprefix("py:").partition(":")
    if not (module and separator and function):
        raise PogdiffError(f"{spec} is not py:module:function.", exit_code=Exit.USAGE)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise PogdiffError(
            f"{spec} cannot be imported: {error}.",
            hint="Is its folder on PYTHONPATH?",
            exit_code=Exit.MISSING,
        ) from error
    if not callable(found):
        raise PogdiffError(f"{spec} is no function.", exit_code=Exit.USAGE)
    result: Callable[..., Any] = found
    return result
