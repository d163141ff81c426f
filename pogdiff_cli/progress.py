"""How a layer that must not print says how far it is: it wraps what it iterates over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Wraps an iterable so that whoever watches sees ``label`` and how many of ``total`` are done."""

    def __call__(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items`` unchanged."""
        ...


def untracked(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` unchanged and tell nobody."""
    del label, total
    yield from items
