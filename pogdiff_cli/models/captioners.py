"""Captioners that look at the picture; wording templates and the user's own files need none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.python_hook import import_function


class Request(Protocol):
    """What a captioner is told of an image besides its pixels (structurally: data's CaptionRequest)."""

    @property
    def file_name(self) -> str:
        """Path under the images folder."""
        ...

    @property
    def identity(self) -> str:
        """The real name."""
        ...

    @property
    def name(self) -> str:
        """The generic name, which the caption uses."""
        ...

    @property
    def text(self) -> str:
        """The user's own caption, if any."""
        ...

    @property
    def attributes(self) -> Mapping[str, str]:
        """Further columns of the data."""
        ...


class Captioner(Protocol):
    """Pictures and what is known of them -> one caption each."""

    @property
    def name(self) -> str:
        """The specification, as the user wrote it: it stands in every line of captions.jsonl."""
        ...

    def describe(self, images: Sequence[Image.Image], requests: Sequence[Request]) -> list[str]:
        """One caption a picture, in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class PythonCaptioner:
    """function(images, requests) -> captions."""

    name: str
    function: Callable[[Sequence[Image.Image], Sequence[Request]], Any]

    def describe(self, images: Sequence[Image.Image], requests: Sequence[Request]) -> list[str]:
        """One caption a picture; anything else that the function gives is an error."""
        captions = list(self.function(images, requests))
        if len(captions) != len(images) or not all(isinstance(caption, str) for caption in captions):
            raise PogdiffError(
                f"{self.name} gave {len(captions)} values for {len(images)} pictures.",
                hint="It must return one string a picture.",
                exit_code=Exit.USAGE,
            )
        return [" ".join(caption.split()) for caption in captions]


def load_captioner(spec: str, *, opts: Mapping[str, Any] | None = None) -> Captioner:
    """The captioner that ``spec`` names: ``py:module:function`` with the option ``allow_python: true``."""
    opts = opts or {}
    if spec.startswith("py:"):
        function = import_function(spec, allowed="yes" if opts.get("allow_python") is True else "no")
        return PythonCaptioner(name=spec, function=function)
    raise PogdiffError(
        f"The captioner {spec!r} cannot be had.",
        hint="Name template, files, or py:module:function for a model of your own.",
        exit_code=Exit.USAGE,
    )
