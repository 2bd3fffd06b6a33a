"""Crops: where they lie, and that pixels go where points go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2net.errors import InputError
from d2net.training.views import Geometry, View, local_scale, random_view, view_around, widest_scale

from ..tiny import DATA


@pytest.fixture(scope="module")
def photo():
    with Image.open(DATA / "graf1.jpg") as image:
        return np.asarray(image.convert("RGB").resize((400, 320)))


def test_a_plain_crop_is_a_part_of_the_photo(photo):
    view = view_around(np.array([200.0, 150.0]), (400, 320), 64)
    assert np.array_equal(view.cut(photo), photo[118:182, 168:232])
    assert view.locate(np.array([[200.0, 150.0]])).tolist() == [[32, 32]]


@pytest.mark.parametrize("point", [(0, 0), (399, 319), (0, 319)])
def test_a_crop_stays_in_the_photo(photo, point):
    view = view_around(np.array(point, float), (400, 320), 64)
    assert view.contains(view.locate(np.array([point], float))).all()
    assert view.cut(photo).min(axis=2).max() > 0
    corners = view.in_photo(np.array([[0, 0], [63, 63.0]]))
    assert (corners >= 0).all() and (corners <= (399, 319)).all()


def test_a_small_photo_is_enlarged(photo):
    view = view_around(np.array([10.0, 10.0]), (50, 40), 64)
    assert local_scale(view.crop_from_photo, np.zeros(2)) == pytest.approx(64 / 40)
    assert view.cut(photo[:40, :50]).shape == (64, 64, 3)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(0.1, 3),
    rotation=st.floats(0, 180),
    perspective=st.floats(0, 0.49),
)
def test_random_views_stay_in_the_photo(seed, scale, rotation, perspective):
    rng = np.random.default_rng(seed)
    size = 300, 200
    geometry = Geometry(rotation, 1.0, perspective)
    point = rng.uniform((0, 0), (299, 199))
    view = random_view(point, size, 64, scale, geometry, rng)
    edges = view.in_photo(np.array([[-0.5, -0.5], [63.5, -0.5], [63.5, 63.5], [-0.5, 63.5]]))
    assert (edges >= -0.5 - 1e-3).all() and (edges <= np.array(size) - 0.5 + 1e-3).all()
    sides = np.roll(edges, -1, axis=0) - edges
    following = np.roll(sides, -1, axis=0)
    turns = sides[:, 0] * following[:, 1] - sides[:, 1] * following[:, 0]
    assert (turns > 0).all()  # neither folded nor mirrored
    points = np.array([[10.0, 20], [40, 5], [63, 63]])
    assert np.allclose(view.locate(view.in_photo(points)), points, atol=1e-6)


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
def test_pixels_go_where_points_go(scale):
    """A bright spot of the photo is found in the crop where `locate` says."""
    ramp = np.zeros((300, 300, 3), np.uint8)
    spot = np.array([140.0, 160.0])
    y, x = np.mgrid[:300, :300]
    ramp[:] = np.rint(255 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 72))[..., None]
    geometry = Geometry(rotation=40, perspective=0.2)
    view = random_view(spot + 8, (300, 300), 96, scale, geometry, np.random.default_rng(1))
    weight = view.cut(ramp)[..., 0].astype(float) ** 2
    y, x = np.mgrid[:96, :96]
    centre = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
    assert np.abs(centre - view.locate(spot[None])[0]).max() < 0.1


def test_widest_scale_shows_the_shorter_side():
    assert widest_scale((640, 480), 240) == 0.5


@pytest.mark.parametrize(
    "values", [{"rotation": 181}, {"rotation": -1}, {"scale": 0.5}, {"perspective": 0.5}]
)
def test_impossible_geometry_is_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Geometry(**values)


def test_outside_the_photo_is_black(photo):
    view = View(np.array([[1.0, 0, 30], [0, 1, 0], [0, 0, 1]]), 64)
    crop = view.cut(photo)
    assert not crop[:, :29].any()
    assert np.array_equal(crop[:, 30:], photo[:64, :34])
