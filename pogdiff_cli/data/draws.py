"""Every random number of training is a pure function of (seed, stream, step, slot).

Philox is a keyed function of a 256-bit counter. The key is (seed, stream); the counter is (block, 0, slot,
step), of which the generator advances only ``block``, so no two (step, slot) pairs can ever share a number,
and any split of the global batch over processes or micro-batches draws the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

_WORD = 2**64


class Stream(IntEnum):
    """What a number is drawn for. The values are part of every run's identity: append, never renumber."""

    RECORD = 1  # which record a slot takes
    FLIP = 2  # horizontal flip
    LATENT = 3  # noise of the image encoder's posterior
    NOISE = 4  # epsilon
    TIMESTEP = 5
    DROPOUT = 6  # caption dropout, decided before the neighbour
    NEIGHBOUR = 7  # which of the k neighbours, Eq. (8)
    ROULETTE = 8  # whether the neighbour branch is evaluated
    TRANSFER = 9  # T2H's choice in the mini-batch
    UNIFORM_RECORD = 10  # CBDM's caption of any record
    CONDITION_COIN = 11  # CBDM's one coin a batch
    VALIDATION = 12
    NOISE_OFFSET = 13
    PHOTO = 14  # order of one identity's photos
    SAMPLE = 15  # initial latents of generated images
    CROP = 16
    PRIOR = 17  # which class image a slot of prior preservation takes


def generator(seed: int, stream: Stream, step: int, slot: int) -> Generator:
    """The generator of one (seed, stream, step, slot); two calls give equal generators."""
    _check(seed, step, slot)
    key = np.array([seed, int(stream)], dtype=np.uint64)
    counter = np.array([0, 0, slot, step], dtype=np.uint64)
    return Generator(Philox(key=key, counter=counter))


def generators(seed: int, stream: Stream, step: int, slots: NDArray[np.int64] | Sequence[int]) -> Iterator[Generator]:
    """``generator(seed, stream, step, slot)`` for each slot, one object set to each counter in turn.

    Making a generator takes ten times as long as drawing a number from it. Each is good until the next is asked for.
    """
    numbers = [int(slot) for slot in slots]
    if not numbers:
        return
    _check(seed, step, *numbers)
    made = generator(seed, stream, step, numbers[0])
    state: dict[str, Any] = made.bit_generator.state  # type: ignore[assignment]  # nothing drawn: an empty buffer
    for slot in numbers:
        state["state"]["counter"][2] = slot
        made.bit_generator.state = state
        yield made


def uniform(
    seed: int, stream: Stream, step: int, slots: NDArray[np.int64] | Sequence[int], n: int = 1
) -> NDArray[np.float64]:
    """U[0, 1) for each slot: slots (b,) -> (b, n). A larger n only appends columns."""
    draws = np.empty((len(slots), n), dtype=np.float64)
    for row, rng in zip(draws, generators(seed, stream, step, slots), strict=True):
        rng.random(out=row)
    return draws


def normal(seed: int, stream: Stream, step: int, slot: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """N(0, I) of the given shape for one slot, float32."""
    return generator(seed, stream, step, slot).standard_normal(tuple(shape), dtype=np.float32)


def normals(
    seed: int, stream: Stream, step: int, slots: NDArray[np.int64] | Sequence[int], shape: Sequence[int]
) -> NDArray[np.float32]:
    """N(0, I) for each slot: slots (b,) -> (b, *shape), float32."""
    draws = np.empty((len(slots), *shape), dtype=np.float32)
    for row, rng in zip(draws, generators(seed, stream, step, slots), strict=True):
        rng.standard_normal(dtype=np.float32, out=row)
    return draws


def _check(seed: int, step: int, *slots: int) -> None:
    if min(seed, step, *slots) < 0 or max(seed, step, *slots) >= _WORD:
        raise ValueError(f"seed, step and slot lie in [0, 2**64): got {seed}, {step}, {slots}")
