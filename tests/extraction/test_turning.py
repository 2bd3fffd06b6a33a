"""Photos that are rotated relative to each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2net import D2Net, Features, InputError, match
from d2net.extraction.turning import turn_photos
from d2net.geometry import coordinates

from ..tiny import make_tiny_model

PHOTO = Path(__file__).parents[1] / "data" / "graf1.jpg"


@pytest.fixture(scope="module")
def model() -> D2Net:
    return D2Net.from_pretrained()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(PHOTO))[100:292, 200:456]


def right(a: Features, b: Features, b_from_a: coordinates.Rotation) -> float:
    """How many of a photo's matches, for each of its keypoints, lie within 1.5 px of the truth."""
    matches = match(a, b)
    expected = b_from_a(a.keypoints[matches.indices[:, 0]])
    error = (b.keypoints[matches.indices[:, 1]] - expected).norm(dim=1)
    return float((error < 1.5).sum()) / len(a)


@pytest.mark.parametrize("quarters", [1, 2])
def test_turned_photos_are_matched_with_turns_and_not_without(
    model: D2Net, photo: np.ndarray, quarters: int
) -> None:
    _, b_from_a = coordinates.turn((photo.shape[1], photo.shape[0]), 90 * quarters)
    a = model.extract(photo)
    turned = np.rot90(photo, quarters)
    assert right(a, model.extract(turned), b_from_a) < 0.3
    found = model.extract(turned, turns=4)
    assert found.image_size == (turned.shape[1], turned.shape[0])
    assert right(a, found, b_from_a) > 0.95


def test_quarter_turns_give_what_the_turned_photos_give(photo: np.ndarray) -> None:
    """To the last keypoint, in the photo's own pixels; and the photo as it is comes along."""
    tiny = make_tiny_model(max_keypoints=300)
    height, width = photo.shape[:2]
    expected = [tiny.extract(np.rot90(photo, quarters)) for quarters in range(4)]
    places = [
        coordinates.turn((width, height), 90 * quarters)[1].inverse()(one.keypoints)
        for quarters, one in enumerate(expected)
    ]
    found = tiny.extract(photo, turns=4)
    assert len(found) == 4 * 300
    assert (found.scores.diff() <= 0).all()
    order = torch.cat([one.scores for one in expected]).argsort(descending=True, stable=True)
    torch.testing.assert_close(found.keypoints, torch.cat(places)[order], rtol=0, atol=1e-3)
    descriptors = torch.cat([one.descriptors for one in expected])[order]
    torch.testing.assert_close(found.descriptors, descriptors)


@pytest.mark.parametrize("degrees", [45.0, 120.0])
def test_a_spot_stays_where_it_is_between_quarter_turns(degrees: float) -> None:
    j, i = np.meshgrid(np.arange(97), np.arange(71))
    spot = 60 + 150 * np.exp(-((j - 40.3) ** 2 + (i - 30.8) ** 2) / (2 * 3**2))
    photos = torch.from_numpy(np.repeat(spot[None, ..., None], 3, axis=3)).float()
    turned, photo_from_turned = turn_photos(photos, degrees)
    _, height, width, _ = turned.shape
    bright = turned[0, ..., 0].double() - 60
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    middle = torch.stack([(bright * x).sum(), (bright * y).sum()]) / bright.sum()
    place = photo_from_turned(middle)
    assert float((place - torch.tensor([40.3, 30.8])).abs().max()) < 0.02


def test_between_quarter_turns_the_frame_has_no_keypoints(photo: np.ndarray) -> None:
    tiny = make_tiny_model()
    alone, found = tiny.extract(photo), tiny.extract(photo, turns=3)
    assert len(found) > 2 * len(alone)
    height, width = photo.shape[:2]
    assert float(found.keypoints.min()) >= 3.5
    assert (found.keypoints <= torch.tensor([width - 4.5, height - 4.5])).all()


def test_masks_and_reduced_photos_are_turned_along(photo: np.ndarray) -> None:
    tiny = make_tiny_model()
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[:90, 130:] = 1
    found = tiny.extract(photo, turns=8, mask=mask, max_edge=200)
    assert len(found) > 50
    assert float(found.keypoints[:, 0].min()) > 129
    assert float(found.keypoints[:, 1].max()) < 90


def test_settings_of_turns() -> None:
    for wrong in (0, 2.5, -4):
        with pytest.raises(InputError, match="turns must be"):
            make_tiny_model(turns=wrong)
    with pytest.raises(InputError, match="whose turns is 1, not 4"):
        make_tiny_model(original=True, turns=4)
    assert make_tiny_model(turns=4).settings.updated(original=True).turns == 1
