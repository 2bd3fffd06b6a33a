"""Where points between correspondences lie, and corners that are seen in both crops."""

from __future__ import annotations

import numpy as np
import pytest

from d2net.geometry.homography import transfer
from d2net.training.transfer import MOST_CORNERS, at_corners, transferred

from .plane_pair import H, grid, warped_pair


def test_points_between_dense_correspondences_go_where_the_homography_takes_them() -> None:
    known = grid(8).astype(np.float32)
    points = np.random.default_rng(0).uniform(10, 240, (200, 2))
    found = transferred(points, known, transfer(H, known))
    np.testing.assert_allclose(found, transfer(H, points), atol=0.05)


def test_sparse_tracks_serve_where_there_are_enough_of_them() -> None:
    rng = np.random.default_rng(1)
    known = rng.uniform(0, 120, (80, 2))
    near, far = rng.uniform(20, 100, (50, 2)), rng.uniform(160, 250, (50, 2))
    found = transferred(np.r_[near, far], known, transfer(H, known))
    assert np.isnan(found[50:]).all()
    told = np.isfinite(found[:50, 0])
    assert told.mean() > 0.8
    np.testing.assert_allclose(found[:50][told], transfer(H, near)[told], atol=0.5)


def test_where_neighbours_part_nothing_is_told() -> None:
    """A foreground that moves 20 px further than what is behind it."""
    known = grid(8)
    moved = known + (known[:, :1] > 128) * [20.0, 0.0]
    found = transferred(np.array([[60.0, 60], [128, 60], [200, 60]]), known, moved)
    np.testing.assert_allclose(found[[0, 2]], [[60, 60], [220, 60]], atol=1e-6)
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("known", [0, 3, 40])
def test_too_few_or_collinear_correspondences_tell_nothing(known: int) -> None:
    line = np.stack([np.arange(known) * 2.0, np.full(known, 50.0)], axis=1)
    assert np.isnan(transferred(np.array([[20.0, 52.0]]), line, line)).all()
    assert transferred(np.empty((0, 2)), line, line).shape == (0, 2)


def test_corners_of_either_crop_lie_where_the_homography_takes_them() -> None:
    pair = warped_pair()
    a, b = at_corners((pair.image_a, pair.image_b), (pair.points_a, pair.points_b))
    assert 100 < len(a) <= 2 * MOST_CORNERS
    np.testing.assert_allclose(b, transfer(H, a), atol=0.05)
    # The same spot is found from both sides to a fraction of a pixel.
    distances = np.linalg.norm(a[:, None] - a[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert np.mean(distances.min(axis=1) < 1) > 0.5


def test_a_crop_without_corners_has_none() -> None:
    pair = warped_pair()
    flat = np.full_like(pair.image_a, 90)
    a, b = at_corners((flat, flat), (pair.points_a, pair.points_b))
    assert a.shape == b.shape == (0, 2)
