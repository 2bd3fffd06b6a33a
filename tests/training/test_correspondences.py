"""Warps by depth and pose, against the 2019 release and against a plane's geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from d2net.geometry.cameras import pinhole
from d2net.geometry.coordinates import TRAINING_CELLS
from d2net.training.correspondences import (
    DepthView,
    DepthWarp,
    Tolerance,
    cell_centres,
    dense,
    sparse,
)
from d2net.training.views import View

from ..release_outputs import released
from .plane import Plane, pose

WHOLE = View(np.eye(3), 256)


def release_view(golden, number):
    """A crop with its depth as a photo of its own: the camera's centre moves with the crop."""
    row, column = golden[f"bbox{number}"].astype(np.float64)
    K = golden[f"intrinsics{number}"].astype(np.float64)
    K[:2, 2] -= (column + 0.5, row + 0.5)  # the release projects to COLMAP's pixels
    pose = golden[f"pose{number}"][:3].astype(np.float64)
    return DepthView(pinhole(K), pose, golden[f"depth{number}"], (256, 256))


@pytest.mark.parametrize("name", ["loss_0", "loss_1"])
def test_the_release_finds_the_same_correspondences(name):
    golden = dict(np.load(released(f"{name}.npz")))
    views = [release_view(golden, number) for number in (1, 2)]
    a, b = dense(WHOLE, WHOLE, DepthWarp(*views, Tolerance(0.05, relative=False)))
    to_cells = TRAINING_CELLS.inverse()
    columns, rows = to_cells(torch.from_numpy(a)).T
    assert torch.equal((32 * rows + columns).long(), torch.from_numpy(golden["cell_ids1"]))
    assert np.array_equal(a[:, ::-1].T, golden["positions1_ij"])
    assert np.abs(b[:, ::-1].T - golden["positions2_ij"]).max() < 2e-4
    cells = to_cells(torch.from_numpy(b)).flip(1).T.round().long()
    assert torch.equal(cells, torch.from_numpy(golden["cells2_ij"]))


def plane_view(plane, number):
    return DepthView(
        plane.camera, np.asarray(pose(number).matrix()), plane.depth(number), plane.size
    )


@pytest.mark.parametrize("model", ["PINHOLE", "SIMPLE_RADIAL", "OPENCV"])
def test_lens_distortion_is_undone(model):
    plane = Plane(model)
    points = cell_centres(128)
    warped = DepthWarp(plane_view(plane, 0), plane_view(plane, 1))(points)
    expected = plane.carried(0, 1, points)
    inside = ((expected >= 0) & (expected <= np.array(plane.size) - 1)).all(axis=1)
    assert inside.sum() > 100
    assert np.array_equal(np.isfinite(warped).all(axis=1), inside)
    assert np.abs(warped[inside] - expected[inside]).max() < 0.05


def test_depth_of_half_the_photos_size():
    plane, points = Plane(), cell_centres(128)
    full, other = plane_view(plane, 0), plane_view(plane, 1)
    small = full.depth.reshape(64, 2, 80, 2).mean(axis=(1, 3))
    places = DepthWarp(replace(full, depth=small), other)(points)
    assert np.nanmax(np.abs(places - plane.carried(0, 1, points))) < 0.1
    assert np.isfinite(places).all(axis=1).sum() > 100


def test_what_is_hidden_or_unknown_is_no_correspondence():
    plane, points = Plane(), cell_centres(128)
    a, b = plane_view(plane, 0), plane_view(plane, 1)
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


def test_the_tolerance_is_relative_unless_told_otherwise():
    depths, others = np.array([1.04, 104.0, np.nan]), np.array([1.0, 100.0, 1.0])
    assert Tolerance().allows(depths, others).tolist() == [True, True, False]
    assert Tolerance(relative=False).allows(depths, others).tolist() == [True, False, False]


def test_only_points_in_both_crops_are_kept():
    shifted = View(np.array([[1.0, 0, -10], [0, 1, 0], [0, 0, 1]]), 64)
    a = np.array([[5.0, 5], [20, 30], [70, 8], [63, 63]])
    points_a, points_b = sparse(View(np.eye(3), 64), shifted, a, a + np.array([4, 0]))
    assert points_a.tolist() == [[20, 30], [63, 63]]
    assert points_b.tolist() == [[14, 30], [57, 63]]
    assert points_a.dtype == points_b.dtype == np.float32
