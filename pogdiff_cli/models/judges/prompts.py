"""What a judge is asked, to the letter."""

from __future__ import annotations

from typing import Literal

Protocol = Literal["paper", "reference"]

#: App. B, word for word; ``p-true`` stands for the real name and is the only part that changes.
PAPER = (
    "It is mandatory to give a score that how close the person in the image to a well-known individual. "
    "A score of 10.0 means they are exactly the same person, while a score of 0.0 means they are definitely "
    "not the same person. How close you think the person in the image is to ‘p-true’."  # noqa: RUF001 - App. B's
)

#: Neither a name, nor which of the two was generated: the judge can only look.
REFERENCE = (
    "Two images are given. Do they show the same individual? Judge by what identifies an individual, not by pose, "
    "clothing, lighting, background or image quality. A score of 10 means certainly the same individual, a score of "
    "0 means certainly not. Fractions are allowed. Answer with JSON alone and nothing else: "
    '{"score": NUMBER}'
)


def prompt_for(protocol: Protocol, real_name: str) -> str:
    """The text of one question."""
    return PAPER.replace("p-true", real_name) if protocol == "paper" else REFERENCE


def template_of(protocol: Protocol) -> str:
    """The text before the name is filled in; its digest stands beside the scores."""
    return PAPER if protocol == "paper" else REFERENCE
