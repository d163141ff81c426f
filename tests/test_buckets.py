"""Aspect buckets: about one area, no image without one, and the nearest for each."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pogdiff_cli.data.buckets import bucket_of, bucket_sizes, nearest_buckets
from pogdiff_cli.data.images import to_array

RESOLUTIONS = (64, 128, 256, 512, 768, 1024)
sides = st.integers(1, 5000)


def cut_off(size: tuple[int, int], bucket: tuple[int, int]) -> float:
    """Share of an image's area that is lost where it is scaled to cover its bucket."""
    aspect, wanted = size[0] / size[1], bucket[0] / bucket[1]
    return 1 - min(aspect, wanted) / max(aspect, wanted)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_sizes_have_about_the_squares_area_and_aspects_up_to_two(resolution: int) -> None:
    sizes = bucket_sizes(resolution)
    assert sizes[0] == (resolution, resolution)
    assert len(set(sizes)) == len(sizes) >= 7
    for width, height in sizes:
        assert abs(width * height / resolution**2 - 1) < 0.07
        assert 0.5 <= width / height <= 2.0
        assert (height, width) in sizes
        assert width % (64 if resolution >= 512 else 8) == 0


@pytest.mark.parametrize("resolution", [32, 64, 96, 112, 128, 192, 224, 256, 320, 448, 512, 768, 1024])
def test_sizes_are_those_that_a_family_takes(resolution: int) -> None:
    """Flux and Stable Diffusion 3 read 2 x 2 latents of 8 pixels each; from 512 pixels on all families agree."""
    sizes = bucket_sizes(resolution, 16)
    assert all(side % 16 == 0 for size in sizes for side in size)
    assert len(sizes) >= (5 if resolution >= 64 else 1)
    assert resolution < 512 or sizes == bucket_sizes(resolution)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_no_aspect_up_to_seven_quarters_loses_more_than_a_sixth(resolution: int) -> None:
    for aspect in np.linspace(4 / 7, 7 / 4, 301):
        size = (int(1000 * aspect), 1000)
        assert cut_off(size, bucket_of(size, resolution)) < 1 / 6


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=20), st.sampled_from(RESOLUTIONS))
def test_no_other_bucket_is_nearer(sizes: list[tuple[int, int]], resolution: int) -> None:
    buckets = bucket_sizes(resolution)
    found = nearest_buckets(np.array(sizes), resolution)
    for (width, height), number in zip(sizes, found, strict=True):
        distances = [abs(math.log(width / height) - math.log(w / h)) for w, h in buckets]
        assert distances[number] <= min(distances) + 1e-8
        assert bucket_of((width, height), resolution) == buckets[number]


@given(sides, sides)
def test_an_image_and_its_transpose_take_transposed_buckets(width: int, height: int) -> None:
    assert bucket_of((height, width), 512) == bucket_of((width, height), 512)[::-1]


def test_an_array_has_its_buckets_shape_and_nothing_of_a_fitting_image_is_lost() -> None:
    picture = np.zeros((96, 160, 3), dtype=np.uint8)
    picture[:8] = picture[-8:] = 255  # both edges: a crop to the square keeps them, one of the width loses none
    picture[:, :8] = picture[:, -8:] = 255
    values = to_array(Image.fromarray(picture), resolution=64, resize="bucket")
    assert values.shape == (3, 48, 80)
    assert values[:, :, 0].min() > 0.9
    assert values[:, :, -1].min() > 0.9
    assert values[:, 0].min() > 0.9
    assert values[:, 10:-10, 10:-10].max() < -0.9


def test_a_square_image_is_what_it_is_without_buckets() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    cropped = to_array(picture, resolution=64, resize="crop")
    assert np.array_equal(to_array(picture, resolution=64, resize="bucket"), cropped)
