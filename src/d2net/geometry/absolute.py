"""Where a camera stood: absolute pose from points of a photo and their places in the world.

The estimator is COLMAP's: LO-RANSAC over P3P (P4Pf where the focal length is not known), then a
refinement that holds outliers down. What RANSAC leaves unsaid is done here: an inlier is a point
within the threshold of the final pose, a pose that its inliers do not determine is none, and the
noise of the inliers says how uncertain the pose is.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from d2net.errors import InputError
from d2net.geometry.cameras import project
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS
from d2net.geometry.robust import on_one_line

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]

MIN_POINTS = 4
"""Fewest points that a pose is estimated from; one more if the focal length is estimated too. Three
(four) would do, but they always agree with a pose, so agreement would mean nothing."""

_STEP = 1e-6  # of central differences, in units of depth and of focal length


@dataclass(frozen=True)
class AbsolutePoseOptions:
    """How a pose is estimated.

    Attributes:
        threshold: largest reprojection error of an inlier in pixels of the photo (12 is COLMAP's).
        estimate_focal_length: take only the kind of camera, its principal point and distortion
            from the camera given, and estimate its focal length with the pose.
        confidence: probability with which the best pose has been seen when the search stops early
            (0.99999 is COLMAP's default).
        max_iterations: samples tried at most.
        seed: of the random samples; the same seed gives identical results.
    """

    threshold: float = 12.0
    estimate_focal_length: bool = False
    confidence: float = 0.99999
    max_iterations: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < np.inf:
            raise InputError(f"threshold must be a positive number of pixels, not {self.threshold}")
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence must be between 0 and 1, not {self.confidence}")
        if self.max_iterations < 1:
            raise InputError(f"max_iterations must be at least 1, not {self.max_iterations}")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed must be in 0 .. 2^31 - 1, not {self.seed}")


@dataclass(frozen=True, eq=False)
class AbsolutePose:
    """A camera placed in the world.

    Attributes:
        cam_from_world: COLMAP's rigid transform.
        camera: the camera as given, with the estimated focal length if that was asked for.
        inliers: N marks of the points within the threshold of the pose.
        covariance: 6 x 6, of a rotation about the camera's axes (vector in radians) and of the
            camera's centre in the world, as the scatter of the inliers says; it knows nothing of
            errors that they share, as those of the intrinsics.
    """

    cam_from_world: pycolmap.Rigid3d
    camera: pycolmap.Camera
    inliers: NDArray[np.bool_]
    covariance: Array

    @property
    def num_inliers(self) -> int:
        """How many points agree with the pose."""
        return int(np.count_nonzero(self.inliers))

    @property
    def centre(self) -> Array:
        """Where the camera is in the world."""
        return np.asarray(self.cam_from_world.inverse().translation, dtype=np.float64)

    @property
    def rotation_deviation(self) -> float:
        """Standard deviation of the rotation in degrees."""
        return float(np.degrees(np.sqrt(np.trace(self.covariance[:3, :3]))))

    @property
    def position_deviation(self) -> float:
        """Standard deviation of the camera's centre in units of the world."""
        return float(np.sqrt(np.trace(self.covariance[3:, 3:])))


def absolute_pose(
    points2D: ArrayLike,
    points3D: ArrayLike,
    camera: pycolmap.Camera,
    options: AbsolutePoseOptions | None = None,
) -> AbsolutePose | None:
    """Robustly estimate the pose of a camera from points of its photo whose places are known.

    Args:
        points2D: N x 2 (x, y) in pixels, the centre of the top-left pixel at (0, 0).
        points3D: N x 3, their places in the world, in any unit. A point of the photo may occur
            several times with different places; at most one of them is right.
        camera: COLMAP's camera; any lens model. It is left as it is.
        options: see `AbsolutePoseOptions`.

    Returns:
        The pose, or None where the points are too few (see `MIN_POINTS`), lie on a line, or agree
        with no pose.

    Raises:
        InputError: for points of another shape or not finite.
    """
    import pycolmap

    options = options or AbsolutePoseOptions()
    x, X = _checked(points2D, points3D)
    fewest = MIN_POINTS + options.estimate_focal_length
    if len(x) < fewest:
        return None
    camera = deepcopy(camera)  # the estimator writes the focal length into it
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.estimate_focal_length = options.estimate_focal_length
    estimation.ransac.max_error = options.threshold
    estimation.ransac.confidence = options.confidence
    estimation.ransac.min_num_trials = min(100, options.max_iterations)
    estimation.ransac.max_num_trials = options.max_iterations
    estimation.ransac.min_inlier_ratio = 0.0  # would end the search before max_num_trials
    estimation.ransac.random_seed = options.seed
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    refinement.refine_focal_length = options.estimate_focal_length
    # Residuals beyond this have less weight. COLMAP's 1 px, made for SIFT, wastes part of what
    # features with an error of a few pixels know.
    refinement.loss_function_scale = options.threshold / 2
    found = pycolmap.estimate_and_refine_absolute_pose(
        COLMAP_FROM_PIXELS(torch.from_numpy(x)).numpy(), X, camera, estimation, refinement
    )
    if found is None:
        return None
    cam_from_world = found["cam_from_world"]
    residuals = project(camera, cam_from_world, X) - x
    inliers = np.asarray(np.linalg.norm(residuals, axis=1) <= options.threshold)  # False for NaN
    distinct = len(np.unique(np.hstack([x, X])[inliers], axis=0))
    if distinct < fewest or on_one_line(x[inliers], options.threshold):
        return None
    covariance = _covariance(
        camera, cam_from_world, X[inliers], residuals[inliers], options.estimate_focal_length
    )
    if covariance is None:
        return None
    return AbsolutePose(cam_from_world, camera, inliers, covariance)


def _checked(points2D: ArrayLike, points3D: ArrayLike) -> tuple[Array, Array]:
    x, X = (np.array(points, dtype=np.float64) for points in (points2D, points3D))
    if x.ndim != 2 or X.ndim != 2 or x.shape[1] != 2 or X.shape != (len(x), 3):
        raise InputError(
            "points and their places must be arrays of shapes (N, 2) and (N, 3), not "
            f"{x.shape} and {X.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(X).all()):
        raise InputError("points must be finite numbers, but some are NaN or infinite")
    return x, X


def _covariance(
    camera: pycolmap.Camera,
    cam_from_world: pycolmap.Rigid3d,
    points: Array,
    residuals: Array,
    focal_is_free: bool,
) -> Array | None:
    """6 x 6 as in `AbsolutePose`, to first order; None where the points leave the pose open.

    The pixel noise is that of the residuals (Hartley and Zisserman, section 5.2.3).
    """
    R = np.asarray(cam_from_world.rotation.matrix(), dtype=np.float64)
    in_camera = np.asarray(cam_from_world * points, dtype=np.float64)
    step = _STEP * np.linalg.norm(in_camera, axis=1)[:, None]
    by_point = np.stack(  # N x 2 x 3: how pixels move with a point in the camera's frame
        [
            (
                camera.img_from_cam(in_camera + step * axis)
                - camera.img_from_cam(in_camera - step * axis)
            )
            / (2 * step)
            for axis in np.eye(3)
        ],
        axis=2,
    )
    # A small rotation w moves the point by w x p, a small shift c of the centre by -R c.
    by_rotation = np.cross(in_camera[:, None, :], by_point)
    columns = [by_rotation, -by_point @ R]
    if focal_is_free:
        columns.append(_by_focal_length(camera, in_camera)[:, :, None])
    jacobian = np.concatenate(columns, axis=2).reshape(2 * len(points), -1)
    degrees = 2 * len(points) - jacobian.shape[1]
    with np.errstate(all="ignore"):
        scale = np.linalg.norm(jacobian, axis=0)  # radians and units of the world, made alike
        scaled = jacobian / scale
        if not np.isfinite(scaled).all() or np.linalg.matrix_rank(scaled) < jacobian.shape[1]:
            return None
        inverse = np.linalg.inv(scaled.T @ scaled) / np.outer(scale, scale)
    covariance = float((residuals**2).sum()) / degrees * inverse
    return np.asarray(covariance[:6, :6], dtype=np.float64)


def _by_focal_length(camera: pycolmap.Camera, in_camera: Array) -> Array:
    """N x 2: how pixels move with the focal length, per share of it."""
    ends = []
    for factor in (1 + _STEP, 1 - _STEP):
        other = deepcopy(camera)
        params = np.array(other.params)
        params[list(other.focal_length_idxs())] *= factor
        other.params = params.tolist()
        ends.append(np.asarray(other.img_from_cam(in_camera), dtype=np.float64))
    return np.asarray((ends[0] - ends[1]) / (2 * _STEP), dtype=np.float64)
