"""`original` against the outputs of the 2019 release itself."""

from __future__ import annotations

import numpy as np
import pytest

from d2net import D2Net

from ..release_outputs import released

PHOTOS = ("graf_320x256", "graf_odd_313x237", "grey_251x199", "tall_96x301", "tiny_40x33")


@pytest.fixture(scope="module")
def model() -> D2Net:
    return D2Net.from_pretrained("ots", original=True)


def check(model: D2Net, photo: str, golden: str, **settings: object) -> None:
    """None missing, none extra, same order, same values."""
    truth = np.load(released(f"{golden}.npz"))
    found = model.extract(released(f"{photo}.png"), **settings)
    assert len(found) == len(truth["keypoints"])
    assert np.abs(found.keypoints.numpy() - truth["keypoints"][:, :2]).max() < 1e-3
    np.testing.assert_array_equal(found.scales.numpy(), truth["keypoints"][:, 2])
    np.testing.assert_allclose(found.scores.numpy(), truth["scores"], rtol=1e-4)
    cosine = (found.descriptors.numpy() * truth["descriptors"]).sum(axis=1)
    assert cosine.min() > 0.99999


@pytest.mark.parametrize("photo", PHOTOS)
def test_single_scale(model: D2Net, photo: str) -> None:
    check(model, photo, f"{photo}.single")


@pytest.mark.parametrize("photo", PHOTOS)
def test_multi_scale(model: D2Net, photo: str) -> None:
    check(model, photo, f"{photo}.multi", multiscale=True)


def test_resized(model: D2Net) -> None:
    photo = "graf_odd_313x237"
    check(model, photo, f"{photo}.max_edge_200", max_edge=200)


def test_a_level_without_detections_does_not_stop_it(model: D2Net) -> None:
    """Where the release crashes: its fault 7."""
    flat = np.full((90, 100, 3), 128, dtype=np.uint8)
    assert len(model.extract(flat, multiscale=True)) < 50
