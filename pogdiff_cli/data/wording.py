"""Wording templates such as "a photo of {name}" and "{name}, {pose}": the data's columns are filled in."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter

import numpy as np

from pogdiff_cli.errors import Exit, PogdiffError


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRequest:
    """What a captioner is told of one image besides its pixels."""

    file_name: str
    identity: str  # the real one
    name: str  # the generic one, which the caption uses
    text: str  # the user's own caption, real names replaced; "" where there is none
    attributes: Mapping[str, str]


def check_prompts(prompts: Sequence[str], attributes: Collection[str]) -> None:
    """Refuse, before any caption is written, a prompt with an unknown placeholder or without {name}."""
    if not prompts:
        raise _refusal("caption.prompts is empty.", "Give at least one, such as 'a photo of {name}'.")
    for prompt in prompts:
        fields = placeholders(prompt)
        for field in fields:
            if field != "name" and field not in attributes:
                known = ["name", *sorted(attributes)]
                near = difflib.get_close_matches(field, known, n=1)
                hint = f"Did you mean {{{near[0]}}}?" if near else f"Known: {', '.join(known)}."
                raise _refusal(f"The prompt {prompt!r} has the unknown placeholder {{{field}}}.", hint)
        if "name" not in fields:
            raise _refusal(f"The prompt {prompt!r} lacks {{name}}.", "A caption must say whom it shows.")


@lru_cache(maxsize=1024)
def placeholders(prompt: str) -> tuple[str, ...]:
    """Names between braces; attribute access, indices, conversions and formats are refused."""
    try:
        parts = list(Formatter().parse(prompt))
    except ValueError as error:
        raise _refusal(f"The prompt {prompt!r} cannot be read: {error}.", "Write {{ and }} for braces.") from error
    fields = []
    for _, field, form, conversion in parts:
        if field is None:
            continue
        if not field.isidentifier() or form or conversion:
            raise _refusal(
                f"The prompt {prompt!r} has the placeholder {{{field}}}, which is no plain name.",
                "Write {name} or the name of a column.",
            )
        fields.append(field)
    return tuple(fields)


def render(prompts: Sequence[str], request: CaptionRequest, *, seed: int, index: int) -> str:
    """Caption of the ``index``-th image of its identity.

    Each identity goes through the prompts in an order of its own, so that its photos share a wording only
    when there are more photos than prompts: a neighbour with the same text teaches nothing. A prompt that
    names an attribute which this image lacks is passed over.
    """
    values = {**request.attributes, "name": request.name}
    order = _order(request.identity, len(prompts), seed)
    for step in range(len(prompts)):
        prompt = prompts[order[(index + step) % len(prompts)]]
        if all(values.get(field) for field in placeholders(prompt)):
            return "".join(literal + (values[field] if field else "") for literal, field in _parts(prompt))
    raise PogdiffError(
        f"No prompt fits {request.file_name}: each names an attribute that it lacks.",
        hint="Add a prompt with {name} alone to caption.prompts.",
        exit_code=Exit.DATA,
    )


@lru_cache(maxsize=1024)
def _parts(prompt: str) -> tuple[tuple[str, str | None], ...]:
    """Literal text, and the placeholder that follows it."""
    return tuple((literal, field) for literal, field, _, _ in Formatter().parse(prompt))


def template_captions(prompts: Sequence[str], requests: Sequence[CaptionRequest], *, seed: int) -> list[str]:
    """Captions of all images: an image's index is its place among the file names of its identity."""
    files: dict[str, list[str]] = {}
    for request in requests:
        files.setdefault(request.identity, []).append(request.file_name)
    place = {name: index for names in files.values() for index, name in enumerate(sorted(names))}
    return [render(prompts, request, seed=seed, index=place[request.file_name]) for request in requests]


@lru_cache(maxsize=100_000)
def _order(identity: str, prompts: int, seed: int) -> tuple[int, ...]:
    spawn = np.frombuffer(identity.encode("utf-8"), dtype=np.uint8).tolist()
    return tuple(int(number) for number in np.random.default_rng([seed, *spawn]).permutation(prompts))


def _refusal(message: str, hint: str) -> PogdiffError:
    return PogdiffError(message, hint=hint, exit_code=Exit.USAGE)
