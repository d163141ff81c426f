"""What every captioner offers, and the one that is the user's own function."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from pogdiff_cli.errors import Exit, PogdiffError

Pause = Callable[[float], None]


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

    @property
    def threads(self) -> int:
        """How many threads may ask at once."""
        ...

    def describe(
        self, images: Sequence[Image.Image], requests: Sequence[Request], *, pause: Pause = time.sleep
    ) -> list[str]:
        """One caption a picture, in order; ``pause(seconds)`` is how the captioner waits, and may raise to give up."""
        ...


@dataclass(frozen=True, kw_only=True)
class PythonCaptioner:
    """function(images, requests) -> captions."""

    name: str
    function: Callable[[Sequence[Image.Image], Sequence[Request]], Any]
    threads: int = 1  # nothing is known of its thread safety

    def describe(
        self, images: Sequence[Image.Image], requests: Sequence[Request], *, pause: Pause = time.sleep
    ) -> list[str]:
        """One caption a picture; anything else that the function gives is an error."""
        del pause
        captions = list(self.function(images, requests))
        if len(captions) != len(images) or not all(isinstance(caption, str) for caption in captions):
            raise PogdiffError(
                f"{self.name} gave {len(captions)} values for {len(images)} pictures.",
                hint="It must return one string a picture.",
                exit_code=Exit.USAGE,
            )
        return [one_line(caption) for caption in captions]


def instruction_for(instruction: str, request: Request) -> str:
    """The instruction with ``{name}`` filled in: the generic name, never the real one."""
    return instruction.replace("{name}", request.name)


def one_line(text: str) -> str:
    """A caption is one line of text that every encoding can hold: half a surrogate pair becomes "?"."""
    return " ".join(text.split()).encode("utf-8", "replace").decode("utf-8")
