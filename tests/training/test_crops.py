"""Crops: where they lie, and that pixels go where points go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2net.errors import InputError
from d2net.training.crops import Crop, Warp, crop_around, local_scale, random_crop

from ..tiny import DATA


@pytest.fixture(scope="module")
def photo():
    with Image.open(DATA / "graf1.jpg") as image:
        return np.asarray(image.convert("RGB").resize((400, 320)))


def test_a_plain_crop_is_a_part_of_the_photo(photo):
    crop = crop_around(np.array([200.0, 150.0]), (400, 320), 64)
    assert np.array_equal(crop.cut(photo), photo[118:182, 168:232])
    assert crop.from_photo(np.array([[200.0, 150.0]])).tolist() == [[32, 32]]


@pytest.mark.parametrize("point", [(0, 0), (399, 319), (0, 319)])
def test_a_crop_stays_in_the_photo(photo, point):
    crop = crop_around(np.array(point, float), (400, 320), 64)
    assert crop.contains(crop.from_photo(np.array([point], float))).all()
    assert crop.cut(photo).min(axis=2).max() > 0
    corners = crop.to_photo(np.array([[0, 0], [63, 63.0]]))
    assert (corners >= 0).all() and (corners <= (399, 319)).all()


def test_a_small_photo_is_enlarged(photo):
    crop = crop_around(np.array([10.0, 10.0]), (50, 40), 64)
    assert local_scale(crop.crop_from_photo, np.zeros(2)) == pytest.approx(64 / 40)
    assert crop.cut(photo[:40, :50]).shape == (64, 64, 3)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(0.1, 3),
    rotation=st.floats(0, 180),
    perspective=st.floats(0, 0.49),
)
def test_random_crops_stay_in_the_photo(seed, scale, rotation, perspective):
    rng = np.random.default_rng(seed)
    size = 300, 200
    warp = Warp(rotation, 1.0, perspective)
    point = rng.uniform((0, 0), (299, 199))
    crop = random_crop(point, size, 64, scale, warp, rng)
    edges = crop.to_photo(np.array([[-0.5, -0.5], [63.5, -0.5], [63.5, 63.5], [-0.5, 63.5]]))
    assert (edges >= -0.5 - 1e-3).all() and (edges <= np.array(size) - 0.5 + 1e-3).all()
    sides = np.roll(edges, -1, axis=0) - edges
    following = np.roll(sides, -1, axis=0)
    turns = sides[:, 0] * following[:, 1] - sides[:, 1] * following[:, 0]
    assert (turns > 0).all()  # neither folded nor mirrored
    points = np.array([[10.0, 20], [40, 5], [63, 63]])
    assert np.allclose(crop.from_photo(crop.to_photo(points)), points, atol=1e-6)


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
def test_pixels_go_where_points_go(scale):
    """A bright spot of the photo is found in the crop where `from_photo` says."""
    ramp = np.zeros((300, 300, 3), np.uint8)
    spot = np.array([140.0, 160.0])
    y, x = np.mgrid[:300, :300]
    ramp[:] = np.rint(255 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 72))[..., None]
    warp = Warp(rotation=40, perspective=0.2)
    crop = random_crop(spot + 8, (300, 300), 96, scale, warp, np.random.default_rng(1))
    weight = crop.cut(ramp)[..., 0].astype(float) ** 2
    y, x = np.mgrid[:96, :96]
    centre = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
    assert np.abs(centre - crop.from_photo(spot[None])[0]).max() < 0.1


@pytest.mark.parametrize(
    "values", [{"rotation": 181}, {"rotation": -1}, {"scale": 0.5}, {"perspective": 0.5}]
)
def test_impossible_warp_is_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Warp(**values)


def test_outside_the_photo_is_black(photo):
    crop = Crop(np.array([[1.0, 0, 30], [0, 1, 0], [0, 0, 1]]), 64)
    pixels = crop.cut(photo)
    assert not pixels[:, :29].any()
    assert np.array_equal(pixels[:, 30:], photo[:64, :34])
