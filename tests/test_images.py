"""Decoding what a folder may hold, and the arrays made of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from badfiles import GREEN, encoded, photo, write_corpus
from PIL import Image, ImageFile

from pogdiff_cli.data.images import BadImage, decode, decode_bytes, from_array, placements, to_array


def test_every_good_file_of_the_corpus_becomes_an_rgb_picture(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    modes = {name: decode(corpus.root / name).image.mode for name in corpus.good}
    assert set(modes.values()) == {"RGB"}


def test_every_bad_file_of_the_corpus_is_refused_with_its_reason(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    for name, reason in corpus.bad.items():
        with pytest.raises(BadImage, match=reason):
            decode(corpus.root / name)


def test_decoding_never_lifts_pillows_limits(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    corpus = write_corpus(tmp_path / "corpus")
    for name in (*corpus.good, *corpus.bad):
        with suppress(BadImage):
            decode(corpus.root / name)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_sixteen_bit_grey_is_rescaled_and_not_saturated() -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for form in ("PNG", "TIFF", "PPM"):
        decoded = decode_bytes(encoded(Image.fromarray(levels), form), "x" + {"PNG": ".png"}.get(form, ".tif"))
        assert np.asarray(decoded.image)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparent_pixels_show_white_and_half_transparent_ones_mix() -> None:
    layer = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    layer.putpixel((1, 0), (0, 0, 0, 51))  # a fifth of black on white: 204
    pixels = np.asarray(decode_bytes(encoded(layer, "PNG"), "a.png").image)
    assert pixels[0, :, 0].tolist() == [255, 204]


def test_a_transparent_palette_colour_shows_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    pixels = np.asarray(decode_bytes(encoded(image, "PNG", transparency=0), "a.png").image)
    assert pixels[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_cmyk_keeps_its_colours() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = np.asarray(decode_bytes(encoded(cmyk, "JPEG", quality=100), "a.jpg").image)
    assert np.abs(pixels[8, 8].astype(int) - (255, 0, 0)).max() <= 4


def test_a_picture_is_turned_as_its_exif_says() -> None:
    image = Image.new("RGB", (30, 10), (0, 0, 0))
    image.paste(GREEN, (0, 0, 10, 10))  # left end
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise: the left end comes to the top
    decoded = decode_bytes(encoded(image, "PNG", exif=exif), "a.png")
    assert decoded.image.size == (10, 30)
    assert decoded.image.getpixel((5, 5)) == GREEN
    assert any("EXIF" in note for note in decoded.notes)


def test_only_the_first_frame_of_an_animation_is_taken_and_noted() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    decoded = decode_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "a.gif")
    assert decoded.image.getpixel((4, 4))[0] > 240
    assert any("animation" in note for note in decoded.notes)


def test_a_wrong_ending_is_noted_and_a_right_one_is_not() -> None:
    data = encoded(photo(), "PNG")
    assert decode_bytes(data, "a.png").notes == ()
    assert decode_bytes(data, "a.jpg").notes == ("named .jpg but holds PNG",)


def test_crop_keeps_the_centre_of_a_wide_picture() -> None:
    image = Image.new("RGB", (60, 20), (0, 0, 0))
    image.paste((255, 255, 255), (20, 0, 40, 20))
    assert to_array(image, resolution=20).min() == 1.0


@pytest.mark.parametrize("size", [(92, 112), (113, 64), (1, 500), (64, 64), (333, 127)])
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_an_array_is_square_and_in_range_whatever_the_picture(size: tuple[int, int], resize: str) -> None:
    values = to_array(photo(*size), resolution=32, resize=resize)
    assert values.shape == (3, 32, 32)
    assert values.dtype == np.float32
    assert -1.0 <= values.min() <= values.max() <= 1.0


def test_padding_is_white_and_keeps_the_whole_picture() -> None:
    values = to_array(Image.new("RGB", (40, 20)), resolution=40, resize="pad")
    assert (values[:, 10:30] == -1.0).all()
    assert (values[:, :10] == 1.0).all()
    assert (values[:, 30:] == 1.0).all()


def test_array_and_back_is_the_identity_at_the_same_size() -> None:
    image = photo(32, 32)
    assert np.array_equal(np.asarray(from_array(to_array(image, resolution=32))), np.asarray(image))


def test_a_flip_mirrors_the_columns() -> None:
    image = photo(16, 16)
    plain, flipped = to_array(image, resolution=16), to_array(image, resolution=16, flip=True)
    assert np.array_equal(flipped, plain[:, :, ::-1])


def test_values_beyond_the_range_are_clipped() -> None:
    pixels = np.asarray(from_array(np.array([[[-3.0, 3.0]]] * 3, dtype=np.float32)))
    assert pixels[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_placements_say_where_the_kept_part_lies() -> None:
    sizes = np.array([[64, 32], [32, 96], [50, 50]])
    crop = placements(sizes, resolution=32, resize="crop")
    assert crop.corner.tolist() == [[16, 0], [0, 32], [0, 0]]
    assert crop.size.tolist() == [[32, 32]] * 3
    for resize in ("pad", "stretch"):
        whole = placements(sizes, resolution=32, resize=resize)
        assert not whole.corner.any()
    # a ramp from left to right: the kept part's first column is the corner's
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (32, 1))).convert("RGB")
    kept = to_array(ramp, resolution=32, resize="crop")
    assert kept[0, 0, 0] == pytest.approx(16 * 4 / 127.5 - 1)


def test_placements_of_buckets_keep_the_middle_of_the_covering_picture() -> None:
    sizes = np.array([[400, 100], [100, 130], [128, 128]])
    placed = placements(sizes, resolution=128, resize="bucket")
    for (width, height), (left, top), kept in zip(sizes, placed.corner, placed.size, strict=True):
        made = to_array(Image.new("RGB", (width, height)), resolution=128, resize="bucket")
        assert made.shape[1:] == (kept[1], kept[0])
        scale = max(kept[0] / width, kept[1] / height)
        assert min(left, top) == 0
        assert (left, top) == (round((width * scale - kept[0]) / 2), round((height * scale - kept[1]) / 2))
