"""Two views of a scene: fundamental and essential matrices.

x_b^T F x_a = 0 for homogeneous points x_a and x_b of photos a and b (Hartley and Zisserman,
"Multiple View Geometry", chapter 9; OpenCV and COLMAP write it in the same order).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from d2net.geometry.cameras import rays
from d2net.geometry.coordinates import Array

if TYPE_CHECKING:
    import pycolmap


def essential_from_pose(rotation: Array, translation: Array) -> Array:
    """E = [t]x R of the pose x_b = R x_a + t (`b_from_a`): 3 x 3 from 3 x 3 and 3."""
    x, y, z = translation
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=np.float64)
    return np.asarray(cross @ rotation, dtype=np.float64)


def fundamental_from_essential(essential: Array, intrinsics_a: Array, intrinsics_b: Array) -> Array:
    """F = K_b^-T E K_a^-1, all 3 x 3, in the pixels that the intrinsics are in."""
    f = np.linalg.inv(intrinsics_b).T @ essential @ np.linalg.inv(intrinsics_a)
    return np.asarray(f, dtype=np.float64)


def epipolar_lines(matrix: Array, points: Array) -> Array:
    """The epipolar lines of N points in the other photo: N x 3, (x, y, 1) . l = 0, unit normals.

    `matrix` is F for points of photo a, and F^T for points of b. An epipole's row is not finite.
    """
    lines = points @ matrix[:, :2].T + matrix[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(lines / np.hypot(lines[:, :1], lines[:, 1:2]), dtype=np.float64)


def distances_from_lines(lines: Array, points: Array) -> Array:
    """N distances of N x 2 points from lines with unit normals."""
    return np.asarray(np.abs((lines[:, :2] * points).sum(axis=1) + lines[:, 2]), dtype=np.float64)


def sampson_distance(fundamental: Array, points_a: Array, points_b: Array) -> Array:
    """The distance of point pairs from x_b^T F x_a = 0, to first order, in pixels.

    The square root of Sampson's error (Hartley and Zisserman, equation 11.9): about how far both
    points of a pair must move together to satisfy the equation exactly. N distances from N x 2
    points; NaN where the equation has no gradient (both points are epipoles).
    """
    line_b = points_a @ fundamental[:, :2].T + fundamental[:, 2]
    line_a = points_b @ fundamental[:2] + fundamental[2]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        algebraic = np.sum(line_b[:, :2] * points_b, axis=1) + line_b[:, 2]
        gradient = np.hypot(
            np.hypot(line_b[:, 0], line_b[:, 1]), np.hypot(line_a[:, 0], line_a[:, 1])
        )
        return np.asarray(np.abs(algebraic) / gradient, dtype=np.float64)


def pose_distance(
    rotation: Array,
    translation: Array,
    cameras: Sequence[pycolmap.Camera],
    points: Sequence[ArrayLike],
) -> Array:
    """`sampson_distance` of N x 2 pixels under a pose x_b = R x_a + t, without lens distortion.

    `cameras` and `points` are those of a and of b.
    """
    focal = [camera.mean_focal_length() for camera in cameras]
    undistorted = [
        f * rays(camera, np.asarray(p, dtype=np.float64))
        for f, camera, p in zip(focal, cameras, points, strict=True)
    ]
    E = essential_from_pose(rotation, translation)
    F = fundamental_from_essential(E, *(np.diag([f, f, 1.0]) for f in focal))
    return sampson_distance(F, *undistorted)
