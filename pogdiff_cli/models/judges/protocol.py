"""What a judge is asked and what it answers, and the judges that need no weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.completions import ChatAnswer

if TYPE_CHECKING:
    from pogdiff_cli.models.endpoint import Endpoint

Pause = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and the pictures it speaks of (PNG files), asked for the ``repeat``-th time."""

    prompt: str
    pictures: tuple[bytes, ...]
    repeat: int

    def images(self) -> list[Image.Image]:
        """The pictures, decoded."""
        return [Image.open(BytesIO(data), formats=["PNG"]).convert("RGB") for data in self.pictures]


class Judge(Protocol):
    """Answers questions about pictures."""

    @property
    def name(self) -> str:
        """The specification, as the user wrote it."""
        ...

    @property
    def threads(self) -> int:
        """How many questions may be asked at once."""
        ...

    def ask(self, question: Question, *, pause: Pause = time.sleep) -> ChatAnswer:
        """One answer; ``pause(seconds)`` is how the judge waits, and may raise to give up."""
        ...


@dataclass(frozen=True, kw_only=True)
class EndpointJudge:
    """A model behind an OpenAI-compatible address."""

    name: str
    threads: int
    endpoint: Endpoint

    def ask(self, question: Question, *, pause: Pause = time.sleep) -> ChatAnswer:
        """One request; repeats differ by the model's own sampling."""
        from pogdiff_cli.models.endpoint import Message

        return self.endpoint.chat([Message(text=question.prompt, pictures=question.pictures)], pause=pause)


@dataclass(frozen=True, kw_only=True)
class PythonJudge:
    """function(prompt, images) -> text or a number."""

    name: str
    function: Callable[[str, list[Image.Image]], Any]
    threads: int = 1  # nothing is known of its thread safety

    def ask(self, question: Question, *, pause: Pause = time.sleep) -> ChatAnswer:
        """What the function returns, as text; anything but text or a number is an error."""
        del pause
        answer = self.function(question.prompt, question.images())
        if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
            raise PogdiffError(
                f"{self.name} gave {type(answer).__name__}.",
                hint="It must return the answer as text, or a number.",
                exit_code=Exit.USAGE,
            )
        return ChatAnswer(text=answer if isinstance(answer, str) else repr(answer))
