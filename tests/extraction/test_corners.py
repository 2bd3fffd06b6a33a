"""Corners of the grey photo: rendered ones at known places, and what must not be one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from d2net.extraction import corners
from d2net.extraction.corners import RADIUS, detect_corners, to_grey

Array = NDArray[np.float64]

PHOTO = Path(__file__).parents[1] / "data" / "graf1.jpg"

OVERSAMPLING = 8
SIZE = 61


def rendered(shape: str, place: tuple[float, float], A: Array, finer: int = 1) -> Array:
    """A bright shape on grey, each pixel the mean of its samples.

    A spot is a disc of radius 2.5 around `place`, a tip a quadrant that ends there; both after the
    affine map A. `finer`: pixels are that much smaller, everything else that much larger.
    """
    n, step = SIZE * OVERSAMPLING, OVERSAMPLING // finer
    samples = (np.arange(n) + 0.5) / OVERSAMPLING - 0.5
    x, y = np.meshgrid(samples - place[0], samples - place[1])
    u, v = np.einsum("ij,jkl->ikl", np.linalg.inv(A), np.stack([x, y]))
    inside = u**2 + v**2 < 2.5**2 if shape == "spot" else (u > 0) & (v > 0)
    bright = 60.0 + 120 * inside
    return bright.reshape(n // step, step, n // step, step).mean(axis=(1, 3))


def turned(rng: np.random.Generator) -> Array:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def warped(rng: np.random.Generator) -> Array:
    """Turned, sheared and stretched."""
    shear = np.array([[1, rng.uniform(-0.4, 0.4)], [0, 1]])
    return turned(rng) @ shear @ np.diag(rng.uniform(0.8, 1.25, 2))


def blurred(photo: Array, rng: np.random.Generator) -> Array:
    return np.asarray(cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.8, 1.5)), dtype=np.float64)


def noisy(photo: Array, rng: np.random.Generator) -> Array:
    return photo + rng.normal(0, 4, photo.shape)


def dim(photo: Array, rng: np.random.Generator) -> Array:
    return np.rint(photo * rng.uniform(0.15, 0.3))


CHANGES = [lambda photo, rng: photo, blurred, noisy, dim]
names = pytest.mark.parametrize("change", CHANGES, ids=["none", "blurred", "noisy", "dim"])


def strongest(photo: Array) -> Array:
    found = detect_corners(torch.from_numpy(photo).float())
    return np.asarray(found.positions[found.scores.argmax()].double().numpy())


@names
def test_a_spot_is_found_at_its_centre(change: Callable[..., Array]) -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(40):
        place = tuple(rng.uniform(29, 31, 2))
        photo = change(rendered("spot", place, turned(rng)), rng)
        errors.append(np.linalg.norm(strongest(photo) - place))
    assert np.median(errors) < 0.15


def inwards(change: Callable[..., Array]) -> Array:
    """How far inside a tip, and how far beside its bisector, the corner is found (N x 2)."""
    rng = np.random.default_rng(1)
    ways = []
    for _ in range(40):
        place, A = tuple(rng.uniform(29, 31, 2)), turned(rng)
        bisector = (A / np.linalg.norm(A, axis=0)).sum(axis=1)
        x, y = bisector / np.linalg.norm(bisector)
        offset = strongest(change(rendered("tip", place, A), rng)) - place
        ways.append([offset @ [x, y], offset @ [-y, x]])
    return np.array(ways)


@names
def test_a_tip_is_found_on_its_bisector_always_as_far_inside(change: Callable[..., Array]) -> None:
    """Smoothing rounds a tip off: the corner lies inside. For matching that must be constant."""
    along, beside = inwards(change).T
    assert 2 < np.median(along) < 3.3
    assert np.median(np.abs(along - np.median(along))) < 0.15
    assert np.median(np.abs(beside)) < 0.1


def test_a_warped_tip_is_found_where_finer_pixels_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the definition means, from pixels of a quarter of the size, is the truth."""
    rng = np.random.default_rng(2)
    errors = []
    for _ in range(8):
        place, A = tuple(rng.uniform(29, 31, 2)), warped(rng)
        found = strongest(rendered("tip", place, A))
        with monkeypatch.context() as patch:
            patch.setattr(corners, "SCALES", tuple((4 * a, 4 * b) for a, b in corners.SCALES))
            patch.setattr(corners, "RADIUS", 4 * RADIUS)
            patch.setattr(corners, "MIN_SCORE", corners.MIN_SCORE / 4)
            fine = strongest(rendered("tip", place, A, finer=4))
        errors.append(np.linalg.norm(found - ((fine + 0.5) / 4 - 0.5)))
    assert np.median(errors) < 0.15


@pytest.mark.parametrize("level", [0.0, 128.0, 255.0])
def test_a_flat_photo_has_none(level: float) -> None:
    assert len(detect_corners(torch.full((60, 70), level))) == 0


def test_edges_and_weak_noise_are_none() -> None:
    photo = np.full((120, 140), 90.0)
    photo[:, 61:] = 200
    noise = np.random.default_rng(0).normal(0, 1.5, photo.shape)
    assert len(detect_corners(torch.from_numpy(photo).float())) == 0
    found = detect_corners(torch.from_numpy(photo + noise).float())
    assert len(found) == 0


def test_of_equal_neighbours_the_first_in_reading_order_stays() -> None:
    photo = torch.zeros(50, 50)
    photo[:25, :25] = photo[25:, 25:] = 100  # the crossing lies between four pixels
    found = detect_corners(photo)
    assert len(found) == 1
    assert found.anchors.tolist() == [[24, 24]]
    torch.testing.assert_close(found.positions, torch.tensor([[24.5, 24.5]]), rtol=0, atol=0.3)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 120), width=st.integers(1, 120), seed=st.integers(0, 1000))
def test_corners_are_maxima_of_their_neighbourhood(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    photo = torch.from_numpy(rng.uniform(0, 255, (height, width))).float()
    found = detect_corners(photo)
    pixel = found.anchors.flip(1)
    apart = torch.cdist(pixel.double(), pixel.double(), p=torch.inf).fill_diagonal_(torch.inf)
    assert float(apart.min() if len(found) > 1 else 3) > 2
    assert ((found.positions - pixel.flip(1)).abs() <= 1).all()
    order = pixel[:, 0] * width + pixel[:, 1]
    assert (order.diff() > 0).all()


def test_the_cut_into_tiles_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = to_grey(torch.from_numpy(np.array(Image.open(PHOTO))[200:330, 200:390]))
    whole = detect_corners(photo)
    monkeypatch.setattr(corners, "_TILE", 37)
    tiled = detect_corners(photo)
    assert len(whole) > 50
    assert torch.equal(whole.anchors, tiled.anchors)
    torch.testing.assert_close(whole.positions, tiled.positions, rtol=0, atol=1e-3)


def test_scores_are_proportional_to_contrast() -> None:
    photo = torch.from_numpy(rendered("spot", (30.2, 29.7), np.eye(2))).float()
    strong, weak = detect_corners(photo), detect_corners(photo / 2 + 50)
    assert float(strong.scores.max() / weak.scores.max()) == pytest.approx(2, rel=1e-3)


def test_grey_weighs_colours_as_the_eye_does() -> None:
    pixels = torch.tensor([[255, 255, 255], [0, 255, 0], [255, 0, 0]], dtype=torch.uint8)
    torch.testing.assert_close(to_grey(pixels), torch.tensor([255, 149.685, 76.245]))
