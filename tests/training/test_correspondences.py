"""Correspondences by depth and pose, by tracks, and interpolated, against known geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from d2net.geometry.cameras import pinhole
from d2net.geometry.coordinates import TRAINING_CELLS
from d2net.geometry.homography import transfer
from d2net.training.correspondences import (
    MAX_CORNERS,
    DepthWarp,
    PosedDepth,
    cell_centres,
    corner_correspondences,
    dense_correspondences,
    interpolate,
    sparse_correspondences,
)
from d2net.training.crops import Crop

from ..release_outputs import released
from .plane import Plane, pose
from .plane_pair import H, grid, warped_pair

WHOLE = Crop(np.eye(3), 256)


class ReleaseWarp(DepthWarp):
    def agrees(self, expected, measured):
        return abs(expected - measured) < self.tolerance  # a length


def release_depth(golden, number):
    """A crop with its depth as a photo of its own: the camera's centre moves with the crop."""
    row, column = golden[f"bbox{number}"].astype(np.float64)
    K = golden[f"intrinsics{number}"].astype(np.float64)
    K[:2, 2] -= (column + 0.5, row + 0.5)  # the release projects to COLMAP's pixels
    pose = golden[f"pose{number}"][:3].astype(np.float64)
    return PosedDepth(pinhole(K), pose, golden[f"depth{number}"], (256, 256))


@pytest.mark.parametrize("name", ["loss_0", "loss_1"])
def test_the_release_finds_the_same_correspondences(name):
    golden = dict(np.load(released(f"{name}.npz")))
    views = [release_depth(golden, number) for number in (1, 2)]
    a, b = dense_correspondences(WHOLE, WHOLE, ReleaseWarp(*views, 0.05))
    to_cells = TRAINING_CELLS.inverse()
    columns, rows = to_cells(torch.from_numpy(a)).T
    assert torch.equal((32 * rows + columns).long(), torch.from_numpy(golden["cell_ids1"]))
    assert np.array_equal(a[:, ::-1].T, golden["positions1_ij"])
    assert np.abs(b[:, ::-1].T - golden["positions2_ij"]).max() < 2e-4
    cells = to_cells(torch.from_numpy(b)).flip(1).T.round().long()
    assert torch.equal(cells, torch.from_numpy(golden["cells2_ij"]))


def plane_depth(plane, number):
    return PosedDepth(
        plane.camera, np.asarray(pose(number).matrix()), plane.depth(number), plane.size
    )


@pytest.mark.parametrize("model", ["PINHOLE", "SIMPLE_RADIAL", "OPENCV"])
def test_lens_distortion_is_undone(model):
    plane = Plane(model)
    points = cell_centres(128)
    warped = DepthWarp(plane_depth(plane, 0), plane_depth(plane, 1))(points)
    expected = plane.carried(0, 1, points)
    inside = ((expected >= 0) & (expected <= np.array(plane.size) - 1)).all(axis=1)
    assert inside.sum() > 100
    assert np.array_equal(np.isfinite(warped).all(axis=1), inside)
    assert np.abs(warped[inside] - expected[inside]).max() < 0.05


def test_depth_of_half_the_photos_size():
    plane, points = Plane(), cell_centres(128)
    full, other = plane_depth(plane, 0), plane_depth(plane, 1)
    small = full.depth.reshape(64, 2, 80, 2).mean(axis=(1, 3))
    places = DepthWarp(replace(full, depth=small), other)(points)
    assert np.nanmax(np.abs(places - plane.carried(0, 1, points))) < 0.1
    assert np.isfinite(places).all(axis=1).sum() > 100


def test_what_is_hidden_or_unknown_is_no_correspondence():
    plane, points = Plane(), cell_centres(128)
    a, b = plane_depth(plane, 0), plane_depth(plane, 1)
    free = np.isfinite(DepthWarp(a, b)(points)).all(axis=1)
    in_front = b.depth.copy()
    in_front[:, :40] *= 0.8  # a wall in front of the left part
    seen = DepthWarp(a, replace(b, depth=in_front))(points)
    left = free & (plane.carried(0, 1, points)[:, 0] < 39)
    assert left.sum() > 20
    assert np.isnan(seen[left]).all()
    assert np.isfinite(seen[free & ~left]).all(axis=1).sum() > 20
    hole = a.depth.copy()
    hole[4, 4] = 0  # one corner of the four around (3.5, 3.5)
    assert np.isnan(replace(a, depth=hole).depth_at(np.array([[3.5, 3.5]]))).all()
    assert np.isfinite(replace(a, depth=hole).depth_at(np.array([[3.0, 3.0]]))).all()


def test_the_tolerance_is_relative():
    depths, others = np.array([1.04, 104.0, 110.0, np.nan]), np.array([1.0, 100.0, 100.0, 1.0])
    assert DepthWarp(None, None).agrees(depths, others).tolist() == [True, True, False, False]


def test_only_points_in_both_crops_are_kept():
    shifted = Crop(np.array([[1.0, 0, -10], [0, 1, 0], [0, 0, 1]]), 64)
    a = np.array([[5.0, 5], [20, 30], [70, 8], [63, 63]])
    points_a, points_b = sparse_correspondences(
        Crop(np.eye(3), 64), shifted, a, a + np.array([4, 0])
    )
    assert points_a.tolist() == [[20, 30], [63, 63]]
    assert points_b.tolist() == [[14, 30], [57, 63]]
    assert points_a.dtype == points_b.dtype == np.float32


def test_points_between_dense_correspondences_go_where_the_homography_takes_them() -> None:
    known = grid(8).astype(np.float32)
    points = np.random.default_rng(0).uniform(10, 240, (200, 2))
    found = interpolate(points, known, transfer(H, known))
    np.testing.assert_allclose(found, transfer(H, points), atol=0.05)


def test_sparse_tracks_serve_where_there_are_enough_of_them() -> None:
    rng = np.random.default_rng(1)
    known = rng.uniform(0, 120, (80, 2))
    near, far = rng.uniform(20, 100, (50, 2)), rng.uniform(160, 250, (50, 2))
    found = interpolate(np.r_[near, far], known, transfer(H, known))
    assert np.isnan(found[50:]).all()
    told = np.isfinite(found[:50, 0])
    assert told.mean() > 0.8
    np.testing.assert_allclose(found[:50][told], transfer(H, near)[told], atol=0.5)


def test_where_neighbours_part_nothing_is_told() -> None:
    """A foreground that moves 20 px further than what is behind it."""
    known = grid(8)
    moved = known + (known[:, :1] > 128) * [20.0, 0.0]
    found = interpolate(np.array([[60.0, 60], [128, 60], [200, 60]]), known, moved)
    np.testing.assert_allclose(found[[0, 2]], [[60, 60], [220, 60]], atol=1e-6)
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("known", [0, 3, 40])
def test_too_few_or_collinear_correspondences_tell_nothing(known: int) -> None:
    line = np.stack([np.arange(known) * 2.0, np.full(known, 50.0)], axis=1)
    assert np.isnan(interpolate(np.array([[20.0, 52.0]]), line, line)).all()
    assert interpolate(np.empty((0, 2)), line, line).shape == (0, 2)


def test_corners_of_either_crop_lie_where_the_homography_takes_them() -> None:
    pair = warped_pair()
    a, b = corner_correspondences(pair.image_a, pair.image_b, (pair.points_a, pair.points_b))
    assert 100 < len(a) <= 2 * MAX_CORNERS
    np.testing.assert_allclose(b, transfer(H, a), atol=0.05)
    # The same spot is found from both sides to a fraction of a pixel.
    distances = np.linalg.norm(a[:, None] - a[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert np.mean(distances.min(axis=1) < 1) > 0.5


def test_a_crop_without_corners_has_none() -> None:
    pair = warped_pair()
    flat = np.full_like(pair.image_a, 90)
    a, b = corner_correspondences(flat, flat, (pair.points_a, pair.points_b))
    assert a.shape == b.shape == (0, 2)
