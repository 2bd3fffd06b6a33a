"""Where keypoints lie: the default is centred where `original` is off by two pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2net import D2Net, Features, mutual_nearest
from d2net.geometry import coordinates
from d2net.networks.vgg import VGG
from d2net.networks.vgg_backbone import VGGBackbone

PHOTO = Path(__file__).parents[1] / "data" / "graf1.jpg"


@pytest.fixture(scope="module")
def symmetric_network() -> D2Net:
    """Every weight positive and equal: its map is the photo, blurred without a direction."""
    backbone = VGGBackbone(((2, 2), (2, 2), (2, 2, 2), (2, 2, 2)))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(0.05 if parameter.ndim == 4 else 0.0)
    return D2Net(VGG(backbone))


def blob(x: float, y: float, width: int = 241, height: int = 203) -> np.ndarray:
    """A bright Gaussian blob on grey.

    Caffe's normalisation leaves grey 124 near zero, so that the map is zero away from the blob.
    """
    j, i = np.meshgrid(np.arange(width), np.arange(height))
    bright = 130 * np.exp(-((j - x) ** 2 + (i - y) ** 2) / (2 * 8**2))
    return np.repeat((90 + bright)[..., None] / 255, 3, axis=2).astype(np.float32)


def nearest(features: Features, x: float, y: float) -> np.ndarray:
    """Offset of the keypoint nearest to (x, y)."""
    offsets = features.keypoints.numpy() - np.array([x, y], dtype=np.float32)
    return offsets[np.abs(offsets).max(axis=1).argmin()]


POSES = [(120.0, 100.0), (101.3, 90.8), (133.6, 77.4), (80.25, 120.5), (150.9, 110.1)]


@pytest.mark.parametrize("multiscale", [False, True])
def test_a_blob_is_found_where_it_is(symmetric_network: D2Net, multiscale: bool) -> None:
    offsets = [
        nearest(symmetric_network.extract(blob(x, y), multiscale=multiscale), x, y)
        for x, y in POSES
    ]
    assert np.abs(offsets).max() < 0.6
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.25


def test_original_finds_it_two_pixels_up_and_left(symmetric_network: D2Net) -> None:
    offsets = [
        nearest(symmetric_network.extract(blob(x, y), original=True), x, y) for x, y in POSES
    ]
    assert np.abs(np.mean(offsets, axis=0) + 2).max() < 0.25


@pytest.mark.parametrize("max_edge", [None, 130])
def test_a_blob_in_a_reduced_photo(symmetric_network: D2Net, max_edge: int | None) -> None:
    """The inverse of the resize is exact: no offset that grows with the factor."""
    offsets = [
        nearest(symmetric_network.extract(blob(x, y), max_edge=max_edge), x, y) for x, y in POSES
    ]
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.3


@pytest.fixture(scope="module")
def vgg() -> D2Net:
    return D2Net.from_pretrained("ots", descriptor="plain")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(PHOTO).resize((480, 384), Image.Resampling.LANCZOS))


def likeliest_offset(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Where the ways from each expected keypoint to all found ones nearby pile up."""
    ways = (found[None] - expected[:, None]).reshape(-1, 2)
    ways = ways[np.abs(ways).max(axis=1) < 9]
    grid = np.arange(-7, 7.01, 0.25)
    near_x = np.exp(-((grid[:, None] - ways[None, :, 0]) ** 2) / 2)
    near_y = np.exp(-((grid[:, None] - ways[None, :, 1]) ** 2) / 2)
    y, x = np.unravel_index((near_y @ near_x.T).argmax(), (len(grid), len(grid)))
    return np.array([grid[x], grid[y]])


@pytest.mark.parametrize("original", [False, True])
def test_a_turned_photo_has_turned_keypoints(vgg: D2Net, photo: np.ndarray, original: bool) -> None:
    """Turned by 180 degrees, a constant offset shows twice, whatever the network prefers."""
    there = vgg.extract(photo, original=original).keypoints.numpy()
    upside_down = np.ascontiguousarray(photo[::-1, ::-1])
    turned = vgg.extract(upside_down, original=original).keypoints.numpy()
    height, width = photo.shape[:2]
    expected = np.array([width - 1, height - 1], dtype=np.float32) - there
    offset = likeliest_offset(expected, turned)
    assert np.abs(offset - (-4 if original else 0)).max() <= 1


@pytest.mark.parametrize("original", [False, True])
def test_an_enlarged_photo_has_enlarged_keypoints(
    vgg: D2Net, photo: np.ndarray, original: bool
) -> None:
    """Over the photo and the same turned by 180 degrees, so that its content favours no side."""
    factor = 1.5
    size = (int(photo.shape[1] * factor), int(photo.shape[0] * factor))
    offsets = []
    for small in (photo, np.ascontiguousarray(photo[::-1, ::-1])):
        large = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
        offsets.append(matched_offset(vgg, small, large, original))
    offset = np.mean(offsets, axis=0)
    # original is 2 px off in both photos, where 2 px in the small one should be 3 in the large one
    assert np.abs(offset - (1 if original else 0)).max() < 0.5


def test_a_shifted_photo_has_shifted_keypoints(vgg: D2Net, photo: np.ndarray) -> None:
    """By no multiple of the stride, so that the cells fall elsewhere."""
    there = vgg.extract(photo)
    shifted = vgg.extract(photo[3:, 6:])
    matches = mutual_nearest(there.descriptors, shifted.descriptors)
    a = there.keypoints[matches.indices[:, 0]] - torch.tensor([6.0, 3.0])
    b = shifted.keypoints[matches.indices[:, 1]]
    error = (a - b).abs().amax(dim=1)
    assert float((error < 2).float().mean()) > 0.5
    assert float((b - a)[error < 4].mean(dim=0).abs().max()) < 0.15


def matched_offset(
    model: D2Net, small: np.ndarray, large: np.ndarray, original: bool
) -> np.ndarray:
    """Median of found - expected over the right matches, in pixels of the larger photo."""
    a, b = (model.extract(image, original=original) for image in (small, large))
    large_from_small = coordinates.resize(a.image_size, b.image_size)
    matches = mutual_nearest(a.descriptors, b.descriptors)
    expected = large_from_small(a.keypoints[matches.indices[:, 0]])
    offset = (b.keypoints[matches.indices[:, 1]] - expected).numpy()
    right = np.abs(offset).max(axis=1) < 8
    assert right.sum() > 100
    return np.median(offset[right], axis=0)
