"""Photos as sources read them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from d2net.errors import ImageError
from d2net.io.images import read_image, resize
from d2net.training.sources.reading import read_photo, size_of

from ...tiny import DATA


@pytest.mark.parametrize("upright", [True, False])
def test_large_jpegs_are_reduced_as_any_photo(tmp_path, upright):
    path = tmp_path / "large.jpg"
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(DATA / "graf1.jpg") as photo:
        photo.convert("RGB").resize((1603, 1283)).save(path, quality=95, exif=exif)
    size = (256, 320) if upright else (320, 256)
    assert size_of(path, upright=upright) == ((1283, 1603) if upright else (1603, 1283))
    small = read_photo(path, 320, upright=upright)
    assert small.shape == (*size[::-1], 3)
    whole = resize(read_image(path, upright=upright), size)
    error, shifted = (np.abs(small.astype(float) - w).mean() for w in (whole, np.roll(whole, 1, 0)))
    assert error < 3 and 4 * error < shifted


def test_the_last_photos_are_kept_and_read_only(tmp_path):
    Image.new("RGB", (40, 30), (9, 8, 7)).save(tmp_path / "a.png")
    first = read_photo(tmp_path / "a.png", None)
    assert read_photo(tmp_path / "a.png", None) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 0


def test_deep_photos_of_a_narrow_range_keep_their_contrast(tmp_path):
    values = 9000 + np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) // 8
    Image.fromarray(values).save(tmp_path / "thermal.png")
    assert len(np.unique(read_photo(tmp_path / "thermal.png", None))) > 200


def test_grey_and_deep_photos_become_eight_bit_rgb(tmp_path):
    Image.fromarray(np.full((20, 30), 30000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (30, 20), 117).save(tmp_path / "grey.png")
    for name in ("deep", "grey"):
        photo = read_photo(tmp_path / f"{name}.png", None)
        assert photo.dtype == np.uint8 and photo.shape == (20, 30, 3)
        assert np.unique(photo).tolist() == [117]


def test_a_damaged_jpeg_is_told_by_name(tmp_path):
    path = tmp_path / "half.jpg"
    with Image.open(DATA / "graf1.jpg") as photo:
        photo.convert("RGB").resize((1600, 1280)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ImageError, match=r"half\.jpg"):
        read_photo(path, 200)
